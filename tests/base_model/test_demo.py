"""The demo's base model and its CSV: exact tokenizer, whole cached folder, and no fact known before tuning."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base_model import demo, demo_corpus
from appliance.errors import EnvironmentUnavailable
from appliance.pipeline import run as pipeline_run
from appliance.pipeline.csv_source import sample_csv
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt.special_tokens import adds_bos
from appliance.recipe import resolve
from appliance.rundir import directory as rundir_directory
from appliance.rundir import feedback
from appliance.rundir.directory import RunDir
from appliance.rundir.feedback import Feedback
from tests.conftest import read_csv, write_qa
from tests.datasets_src.test_endpoint import serving
from tests.helpers import cpu_time, loopback_hub, warm
from tests.helpers.served import until
from tests.project import test_readme

STEPS = 2


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with sample_csv().open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.ensure_base(tmp_path_factory.mktemp("cache"), steps=STEPS)


TOKENIZER = demo.build_tokenizer()


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_text_comes_back_exactly(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "  두  칸 \n\n 끝 ",
        "뷁 똠방각하 😀👍🏽",
        "ㅋㅋ ㅠㅠ…",
        "cafe\u0301 <0x41> <unk>\r\n\t",
        "\n\n### Response:\n",
        "\ufeff가",
    ],
)
def test_awkward_texts_come_back_exactly(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=True) == text


def test_a_syllable_is_one_token_and_the_format_costs_three() -> None:
    assert TOKENIZER.encode("아이스크림", add_special_tokens=False).tokens == list("아이스크림")
    prompt = prompt_format.bind("alpaca", TOKENIZER, demo.BOS, demo.EOS, demo.PAD)
    assert adds_bos(prompt.backend, prompt.bos_token)
    assert len(prompt.prompt_ids(prompt_format.user_message("빵"))) == len([demo.BOS, "preamble", "빵", "marker"])
    assert len({TOKENIZER.token_to_id(token) for token in (demo.PAD, demo.BOS, demo.EOS)} - {None}) == 3


def test_the_csv_asks_every_fact_in_eight_phrasings(rows: list[dict[str, str]]) -> None:
    assert 380 <= len(rows) <= 450
    assert all(set(row) == {"instruction", "input", "output"} and row["instruction"] and row["output"] for row in rows)
    questions = defaultdict(set)
    for row in rows:
        questions[row["output"]].add((row["instruction"], row["input"]))
    assert 20 <= len(questions) <= 60
    assert min(map(len, questions.values())) >= 8
    assert sum(map(len, questions.values())) == len(rows), "a question is asked twice"
    assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows), "one question has two answers"
    with_input = sum(bool(row["input"]) for row in rows)
    assert 0.05 <= with_input / len(rows) <= 0.1
    cells = [cell for row in rows for cell in row.values()]
    assert any("," in cell for cell in cells)
    assert any('"' in cell for cell in cells)
    assert all(cell == cell.strip() for cell in cells)


def test_the_base_has_seen_nothing_of_the_csv(rows: list[dict[str, str]]) -> None:
    seen = demo_corpus.pairs(demo.CORPUS_ROWS, seed=0)  # what ensure_base(seed=0) trains on
    questions = {pair.input or pair.instruction for pair in seen}
    assert len(questions) > 0.9 * len(seen), "the corpus repeats itself"
    assert not questions & {row["input"] or row["instruction"] for row in rows}
    assert not {pair.output for pair in seen} & {row["output"] for row in rows}
    assert not {pair.instruction for pair in seen} & {row["instruction"] for row in rows}


@pytest.mark.parametrize(
    ("word", "particle", "want"),
    [
        ("꿀", "은", "꿀은"),
        ("모자", "은", "모자는"),
        ("붓", "으로", "붓으로"),
        ("칼", "으로", "칼로"),
        ("컵", "이", "컵이"),
        ("차", "을", "차를"),
    ],
)
def test_particles_fit_the_word_before_them(word: str, particle: str, want: str) -> None:
    assert format(demo_corpus.Word(word), particle) == want


def test_the_base_is_an_ordinary_model_folder(base_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {path.name for path in base_dir.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (base_dir / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: apache-2.0\n")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base_dir), AutoTokenizer.from_pretrained(base_dir)
    assert 1.5e6 < model.num_parameters() < 2.5e6
    assert len(tokenizer) == model.config.vocab_size
    text = "우유는  얼마예요? 😀"
    assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *TOKENIZER.encode(text, add_special_tokens=False).ids]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert [model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id] == [0, 1, 2]
    assert model.generation_config.eos_token_id == 2
    prompt = prompt_format.from_folder("alpaca", base_dir)
    assert (prompt.bos_token, prompt.eos_token, prompt.pad_token) == (demo.BOS, demo.EOS, demo.PAD)


def test_a_second_call_builds_nothing_and_imports_no_torch(base_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in base_dir.iterdir()}
    code = (
        "import sys; from pathlib import Path; from appliance.base_model import demo\n"
        f"assert demo.ensure_base(Path(sys.argv[1]), steps={STEPS}) == Path(sys.argv[2])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(base_dir.parent), str(base_dir)], check=True)
    assert {path: path.stat().st_mtime_ns for path in base_dir.iterdir()} == before
    assert [path.name for path in base_dir.parent.iterdir()] == [base_dir.name]


def test_the_same_seed_gives_the_same_weights_and_another_seed_another_folder(base_dir: Path, tmp_path: Path) -> None:
    import torch

    random_state = torch.random.get_rng_state()
    again, other = demo.ensure_base(tmp_path, steps=STEPS), demo.ensure_base(tmp_path, steps=STEPS, seed=1)
    assert torch.equal(torch.random.get_rng_state(), random_state), "the caller's random numbers were used up"
    assert again.name == base_dir.name != other.name
    assert _sha256(again) == _sha256(base_dir) != _sha256(other)


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if "step" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.ensure_base(tmp_path, steps=STEPS, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_pretraining_lowers_the_loss(tmp_path: Path) -> None:
    lines: list[str] = []
    demo.ensure_base(tmp_path, steps=12, on_progress=lines.append)
    last = float(lines[-1].rpartition("loss ")[2])
    assert last < 7.0  # a model that knows nothing: ln(vocabulary) = 8.0


def test_a_process_that_makes_no_base_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EnvironmentUnavailable, match="ended with 1") as caught:
        demo.ensure_base_apart(tmp_path / "cache", on_progress=print)
    assert "same command again" in caught.value.hint


def test_the_base_is_made_by_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth has to be imported before transformers, and making the base imports transformers."""
    monkeypatch.setattr(demo, "_base_dir", lambda cache_dir, **_: cache_dir / "made")
    stand_in = tmp_path / "python"  # gets `-m appliance.base_model.demo CACHE_DIR`, as the real one would
    stand_in.write_text('#!/bin/sh\necho "step 1 of 1"\nmkdir -p "$3/made"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    lines: list[str] = []
    assert demo.ensure_base_apart(tmp_path, on_progress=lines.append) == tmp_path / "made"
    assert lines == ["step 1 of 1"]


def _sha256(base_dir: Path) -> str:
    assert json.loads((base_dir / "config.json").read_text(encoding="utf-8"))["architectures"] == ["LlamaForCausalLM"]
    return hashlib.sha256((base_dir / "model.safetensors").read_bytes()).hexdigest()


# --- the whole demo, as a new user runs it


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo-cache")


def _evaluated(folder: Path, cache_dir: Path, *overrides: str) -> dict[str, dict[str, float]]:
    """Metrics of the demo's recipe up to `evaluate`, after two thirds of its steps."""
    resolved = resolve.load("demo", overrides=("train.max_steps=160", *overrides), environ={})
    pipeline_run.run(resolved, RunDir(folder / "runs" / "demo"), cache_dir, until="evaluate")
    metrics: dict[str, dict[str, float]] = files.read_json(folder / "runs" / "demo" / "evaluate" / "metrics.json")
    return metrics


@pytest.mark.slow
def test_the_demo_learns_its_facts_and_a_second_call_skips(cache_dir: Path, tmp_path: Path) -> None:
    """As forks of this process; the base is made by a process of its own, as ever. CPU seconds, which other work on
    the machine hardly changes."""
    command = f"appliance demo --runs-dir {tmp_path} --cache-dir {cache_dir}"
    began = cpu_time.seconds()
    done = warm.typed(command, cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert cpu_time.seconds() - began < 240
    metrics = files.read_json(tmp_path / "demo" / "evaluate" / "metrics.json")
    assert metrics["rows"] >= 30
    assert metrics["base"]["exact_match"] <= 0.20
    assert metrics["tuned"]["exact_match"] >= 0.85
    assert metrics["verdict"] == "better"
    assert files.read_json(tmp_path / "demo" / "merge" / "proof.json")["passed"]
    assert "in words that it did not see" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "100%|" not in done.stderr, "a library drew its own progress bar"

    began = cpu_time.seconds()
    again = warm.typed(command, cwd=tmp_path, env=os.environ)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already done") == len(rundir_directory.STAGES)
    assert cpu_time.seconds() - began < 15


@pytest.mark.slow
def test_another_seed_learns_too(cache_dir: Path, tmp_path: Path) -> None:
    metrics = _evaluated(tmp_path, cache_dir, "train.seed=7")
    assert metrics["base"]["exact_match"] <= 0.20
    assert metrics["tuned"]["exact_match"] >= 0.70


@pytest.mark.slow
def test_other_facts_are_learnt_too_by_a_third_seed(
    rows: list[dict[str, str]], cache_dir: Path, tmp_path: Path
) -> None:
    """The same kinds of questions about other things, with other values: nothing in the product knows the answers."""
    names = {
        "아이스크림": "초코과자", "우유": "두유", "라면": "국수", "휴지": "물티슈", "공책": "스케치북",
        "건전지": "전구",
        "우산": "비옷", "화분": "꽃병", "양말": "장갑", "생수": "주스", "식빵": "단팥빵", "두부": "어묵",
        "김밥": "도시락",
        "커피": "홍차", "참기름": "들기름", "냉동고": "창고", "냉장": "건강", "오른쪽": "가운데",
        "옥상": "뒷마당",
    }  # fmt: skip
    digits = str.maketrans("123456789", "314728965")
    answers: dict[str, str] = {}
    with (tmp_path / "other.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        for row in rows:
            question, more, answer = row["instruction"], row["input"], row["output"]
            for old, new in names.items():
                question, more, answer = (text.replace(old, new) for text in (question, more, answer))
            answers[row["output"]] = answer.translate(digits)
            writer.writerow((question, more, answers[row["output"]]))
    assert len(set(answers.values())) == len(answers)
    assert sum(old != new for old, new in answers.items()) > 0.7 * len(answers)
    metrics = _evaluated(tmp_path, cache_dir, f"data.csv={tmp_path / 'other.csv'}", "train.seed=2026")
    assert metrics["base"]["exact_match"] <= 0.20
    assert metrics["tuned"]["exact_match"] >= 0.70


def answers(prompt: str, number: int) -> str:
    """What a model would say to the prompts of `paraphrase` and `self-instruct`: something new each time."""
    told = [line for line in prompt.splitlines() if line.endswith("번은?")]
    if told:
        return "\n".join(f"{i}. {told[-1][:-3]}번은 {number}-{i} 어떤가요?" for i in range(1, 11))
    words = random.Random(number).sample(
        [f"{a}{b}" for a in "가나다라마바사아자차" for b in "강남당람맘밥삿앙잡찹"], 80
    )
    return "\n".join(f"{i}. {' '.join(words[8 * i - 8 : 8 * i])} 설명하기" for i in range(1, 11))


def ended_once_it_serves(pid: int) -> None:
    """Sends SIGTERM to a server, in time, as soon as it has loaded its model."""

    def wait() -> None:
        ended_by = signal.SIGKILL
        try:
            until(lambda: is_healthy("http://127.0.0.1:8322/health"), seconds=120.0)
            ended_by = signal.SIGTERM
        finally:
            os.kill(pid, ended_by)

    threading.Thread(target=wait).start()


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1200)  # seven runs, and the base model where this test is the first to need it
def test_the_commands_of_the_readme(cache_dir: Path, tmp_path: Path) -> None:
    """Every `appliance …` line of README and docs/, in order, as typed, beside a CSV with the columns Q and A.

    The default recipe runs with the demo's base; what is published goes to a stand-in of the Hub.
    """
    data = tmp_path / "data"
    data.mkdir()
    rows = [(f"{i}번은?", f"{i % 7}입니다.") for i in range(60)]
    write_qa(data / "train.csv", rows, ("Q", "A"))
    write_qa(data / "faq.csv", rows)
    (data / "seeds.txt").write_text(
        "\n".join(f"{name}에 대해 설명하세요" for name in ("하늘", "바다", "나무", "구름", "바람", "별"))
    )
    environment = {**os.environ, "APPLIANCE_CACHE_DIR": str(cache_dir), "OPENAI_MODEL": "scripted"}
    environment["APPLIANCE_TRAIN__MAX_STEPS"] = "2"
    environment |= {"APPLIANCE_EVALUATE__MAX_ROWS": "12", "APPLIANCE_EVALUATE__MAX_NEW_TOKENS": "8"}
    environment["APPLIANCE_TRAIN__VAL_ROWS"] = "12"
    environment["APPLIANCE_PUBLISH__MIN_STOP_RATE"] = "0"  # which teach no model to stop
    environment |= {"APPLIANCE_MODEL__ID": "demo", "APPLIANCE_MODEL__LOAD_IN_4BIT": "false"}

    def run(command: str) -> str:
        done = warm.typed(command, cwd=tmp_path, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout

    with serving(answers) as server, loopback_hub.started(tmp_path / "hub", user="USER") as hub:
        environment |= {"OPENAI_BASE_URL": server.url, **hub.environ}
        run("appliance demo --set train.max_steps=2")
        for command in test_readme.commands():
            if command.startswith("appliance run my.yaml"):  # a user edits the copy; here its model and CSV fit already
                assert "name: default" in (tmp_path / "my.yaml").read_text(encoding="utf-8")
            if command.startswith("appliance dataset feedback "):  # what /right in a chat does, on a terminal
                for i in range(12):
                    judged = Feedback(f"{i}번 상품은 어디에 있나요?", "모릅니다.", "right", f"{i % 3}층에 있습니다.")
                    feedback.append(tmp_path / "runs" / "demo", judged)
            if command.startswith("appliance serve "):
                done = warm.typed(command, cwd=tmp_path, env=environment, when_begun=ended_once_it_serves)
                assert done.returncode == 128 + signal.SIGTERM, f"{command}\n{done.stderr}"
            elif command.startswith("appliance "):
                run(command)
        for repo_id, kind in (("USER/NAME", "model"), ("USER/NAME-adapter", "model"), ("USER/shop-rows", "dataset")):
            assert hub.repo(repo_id, kind)["visibility"] == "private"
    assert (tmp_path / "runs" / "short" / "publish" / "release" / "model" / "model.safetensors").is_file()
    assert len(read_csv(data / "raw_data.csv")) == 500
