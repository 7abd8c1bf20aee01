"""`dataset paraphrase` and `self-instruct`: the files that they leave, exit codes, what is never paid for twice."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.cli import app as cli_app
from appliance.rows import csv_file, split
from tests.conftest import read_csv, write_qa
from tests.datasets_src.test_endpoint import KEY, Reply, Server, serving
from tests.datasets_src.test_self_instruct import SEEDS, inventive

Appliance = Callable[..., tuple[int, str, str]]


@pytest.fixture
def appliance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Appliance]:
    """`app.main` in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["appliance", "dataset", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli_app.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    """20 questions: 16 to train on."""
    return write_qa(tmp_path / "faq.csv", [(f"상품 {i}번은 무엇인가요?", f"{i}번 상품입니다.") for i in range(20)])


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.txt"
    path.write_text("\n".join(seed.instruction for seed in SEEDS) + "\n", encoding="utf-8")
    return path


def rewording(prompt: str, _n: int) -> str:
    """Three paraphrases of the question in the prompt, the last of which asks about another product."""
    number = re.search(r"상품 (\d+)번은", prompt)
    assert number
    return f"1. {number[1]}번 상품이 뭐죠?\n2. 무엇이 {number[1]}번인가요?\n3. {number[1]}번을 알려 주세요."


def inventing(prompt: str, _n: int) -> str:
    return inventive([prompt])[0]


def endpoint(server: Server) -> list[str]:
    return ["--base-url", server.url, "--model", "m"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_paraphrases_are_made_of_the_rows_that_a_run_would_train_on(appliance: Appliance, faq: Path) -> None:
    out = faq.with_name("train.csv")
    with serving(rewording) as server:
        code, stdout, stderr = appliance("paraphrase", faq, out, "--count", 2, *endpoint(server))
    assert (code, len(server.asked)) == (0, 16), stderr
    rows = read_csv(out)
    assert list(rows[0]) == ["instruction", "input", "output", "group", "side"]
    fmt = csv_file.sniff(faq, {}, None)
    typed = [row for row in csv_file.read(faq, fmt) if isinstance(row, csv_file.Row)]
    keys = [split.question_key(row) for row in typed]
    sides = split.question_split(keys, test_fraction=0.1, val_fraction=0.1, seed=123)
    originals = {row["instruction"]: row["side"] for row in rows if row["instruction"].startswith("상품")}
    assert originals == {row.instruction: side for row, side in zip(typed, sides, strict=True)}
    assert len(rows) == 20 + 16 * 2
    assert {row["side"] for row in rows if row["instruction"] not in originals} == {"train"}
    by_group: dict[str, set[str]] = {}
    for row in rows:
        by_group.setdefault(row["group"], set()).add(row["output"])
    assert len(by_group) == 20
    assert all(len(outputs) == 1 for outputs in by_group.values())
    assert names(faq.parent) >= {"train.csv", "train.csv.origin.json", "train.csv.rejected.csv"}
    assert "train.csv.journal.jsonl" not in names(faq.parent)
    assert "rejected" in stdout
    assert "--set data.split=column" in stdout
    assert "data.group_by" not in stdout  # a run on it would split anew, and test on other rows than the plain one
    assert "\nmade         48\n" in "\n" + stdout
    assert KEY not in stdout + stderr


def test_too_few_questions_to_split_are_refused_without_naming_an_option_that_is_none(
    appliance: Appliance, tmp_path: Path
) -> None:
    path = tmp_path / "one.csv"
    path.write_text("question,answer\n수도는?,서울\n")
    with serving(rewording) as server:
        code, _, stderr = appliance("paraphrase", path, tmp_path / "out.csv", *endpoint(server))
    assert (code, server.asked) == (3, [])
    assert "cannot be split" in stderr
    assert "Fix: add rows with other questions\n" in stderr


def test_the_result_is_read_back_with_its_sides_and_groups(appliance: Appliance, faq: Path) -> None:
    """What was made can be made from again: the sides stay, whatever the fractions."""
    first, second = faq.with_name("one.csv"), faq.with_name("two.csv")
    with serving(rewording) as server:
        appliance("paraphrase", faq, first, "--count", 1, *endpoint(server))
    with serving(lambda _p, n: f"1. 또 다른 {n}번째 물음인가요?") as server:
        code, _, stderr = appliance(
            "paraphrase", first, second, "--count", 1, "--test-fraction", 0.5, *endpoint(server)
        )
    assert code == 0, stderr
    held = [[row for row in read_csv(path) if row["side"] != "train"] for path in (first, second)]
    assert held[0] == held[1] != []
    assert {row["group"] for row in read_csv(first)} == {row["group"] for row in read_csv(second)}


def test_rejected_texts_and_counts_are_written_down(appliance: Appliance, faq: Path) -> None:
    out = faq.with_name("train.csv")
    with serving(rewording) as server:
        code, stdout, _ = appliance("paraphrase", faq, out, "--count", 2, "--json", *endpoint(server))
    note = json.loads(stdout)
    assert code == 0
    assert note == json.loads(out.with_name("train.csv.origin.json").read_text(encoding="utf-8"))
    assert (note["read"], note["made"], note["written"]) == (20, 48, 52)  # 16 of those made are rejected
    assert note["options"]["seed"] == 123
    assert note["dropped"] == {"more than were asked for": 16}
    assert {key: note["extra"][key] for key in ("questions", "paraphrases", "short", "held_out", "requests")} == {
        "questions": 16,
        "paraphrases": 32,
        "short": 0,
        "held_out": 4,
        "requests": 16,
    }
    assert note["options"]["model"] == "m"
    rejected = read_csv(out.with_name("train.csv.rejected.csv"))
    assert [row["reason"] for row in rejected] == ["more than were asked for"] * 16
    assert all(row["of"].startswith("상품") for row in rejected)


def test_columns_with_other_names_and_rows_that_cannot_be_used(appliance: Appliance, tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(
        "Frage;Antwort\n" + "".join(f"상품 {i}번은?;a{i}\n" for i in range(9)) + "leer;\n", encoding="utf-8"
    )
    with serving(rewording) as server:
        options = ["--count", 1, "--question", "Frage", "--answer", "Antwort", "--json", *endpoint(server)]
        code, stdout, stderr = appliance("paraphrase", path, tmp_path / "out.csv", *options)
    assert code == 0, stderr
    note = json.loads(stdout)
    dropped = note["dropped"]
    assert note["read"] == 10  # with the empty row
    assert note["read"] + note["made"] == note["written"] + sum(dropped.values())
    assert any("Antwort" in reason and "empty" in reason for reason in dropped)


def test_a_dry_run_shows_the_first_prompt_and_the_cost_and_asks_nothing(
    appliance: Appliance, faq: Path, seeds: Path
) -> None:
    before = names(faq.parent)
    code, stdout, _ = appliance("paraphrase", faq, "out.csv", "--count", 7, "--dry-run")
    assert code == 0
    assert "requests     16, at most 32" in stdout
    assert "질문 7개" in stdout
    code, stdout, _ = appliance("self-instruct", seeds, "out.csv", "--count", 500, "--dry-run", "--json")
    plan = json.loads(stdout)
    assert code == 0
    assert (plan["requests_at_least"], plan["requests_at_most"], plan["in_the_journal"]) == (564, None, None)
    assert "새로운 지시문 8개" in plan["first_prompt"]
    assert names(faq.parent) == before


def test_a_dry_run_counts_what_is_paid_for(appliance: Appliance, faq: Path) -> None:
    with serving(lambda p, n: Reply(status=404) if n == 5 else rewording(p, n)) as server:
        options = ["paraphrase", faq, "out.csv", "--count", 2, "--concurrency", 1, *endpoint(server)]
        assert appliance(*options)[0] == 4
        code, stdout, _ = appliance(*options, "--dry-run")
        assert "requests     16, at most 32; 5 already answered" in stdout
        assert len(server.asked) == 6
    assert code == 0


def test_self_instruct_makes_the_rows_that_a_run_trains_on(appliance: Appliance, seeds: Path) -> None:
    out = seeds.with_name("raw_data.csv")
    with serving(inventing) as server:
        code, _, stderr = appliance("self-instruct", seeds, out, "--count", 40, "--concurrency", 8, *endpoint(server))
    assert code == 0, stderr
    assert "40/40 rows" in stderr
    rows = [row for row in csv_file.read(out, csv_file.sniff(out, {}, None)) if isinstance(row, csv_file.Row)]
    assert len(rows) == len({split.question_key(row) for row in rows}) == 40
    assert len(server.prompts) == len(set(server.prompts))
    note = json.loads(out.with_name("raw_data.csv.origin.json").read_text(encoding="utf-8"))
    assert (note["read"], note["written"]) == (len(SEEDS), 40)
    assert note["made"] == 40 + sum(note["dropped"].values())
    assert (note["options"]["count"], note["options"]["seed"]) == (40, 123)


def test_the_rows_do_not_depend_on_the_requests_at_a_time(appliance: Appliance, seeds: Path) -> None:
    with serving(inventing) as server:
        for concurrency in (1, 8):
            options = ["--count", 9, "--concurrency", concurrency, *endpoint(server)]
            assert appliance("self-instruct", seeds, f"{concurrency}.csv", *options)[0] == 0
    assert seeds.with_name("1.csv").read_bytes() == seeds.with_name("8.csv").read_bytes()


def test_what_there_is_can_be_had_without_paying_again(appliance: Appliance, seeds: Path) -> None:
    def exhausted(prompt: str, n: int) -> str:
        return inventing(prompt, n) if "새로운" not in prompt or n < 4 else "1. 바다에 대해 두 문장으로 설명해 줘."

    with serving(exhausted) as server:
        options = ["self-instruct", seeds, "out.csv", *endpoint(server)]
        code, stdout, stderr = appliance(*options, "--count", 500)
        assert (code, stdout) == (3, "")
        count = re.search(r"(\d+) of 500 rows", stderr)
        assert count
        assert f"--count {count[1]} writes what is there without asking again" in " ".join(stderr.split())
        assert names(seeds.parent) == {"seeds.txt", "out.csv.journal.jsonl", "out.csv.rejected.csv"}
        asked = len(server.asked)
        assert appliance(*options, "--count", count[1])[0] == 0
        assert len(server.asked) == asked
    assert len(read_csv(seeds.with_name("out.csv"))) == int(count[1])
    assert "out.csv.journal.jsonl" not in names(seeds.parent)


def test_the_journal_stays_if_it_is_wanted(appliance: Appliance, seeds: Path) -> None:
    with serving(inventing) as server:
        options = ["self-instruct", seeds, "out.csv", *endpoint(server), "--keep-journal"]
        assert appliance(*options, "--count", 10)[0] == 0
        first, asked = seeds.with_name("out.csv").read_bytes(), len(server.asked)
        assert appliance(*options, "--count", 20, "--force")[0] == 0
    assert seeds.with_name("out.csv").read_bytes().startswith(first)
    assert len(server.prompts) == len(set(server.prompts)) > asked


def test_a_run_that_was_killed_goes_on_without_asking_twice(appliance: Appliance, faq: Path) -> None:
    """kill -9 while the ninth request is under way: that one was never answered, all others are paid for."""
    arrived, release = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        release.wait(30)

    def script(prompt: str, n: int) -> Reply | str:
        return Reply(breaks_off=True, wait=hold) if n == 8 else rewording(prompt, n)

    with serving(script) as server:
        options = ["paraphrase", str(faq), "out.csv", "--count", "2", "--concurrency", "1", *endpoint(server)]
        command = [sys.executable, "-m", "appliance", "dataset", *options]
        child = subprocess.Popen(
            command, cwd=faq.parent, stderr=subprocess.PIPE, env=os.environ | {"OPENAI_API_KEY": KEY}
        )
        try:
            assert arrived.wait(60), child.communicate()[1].decode()
        finally:
            child.kill()
            child.communicate()
            release.set()
        assert names(faq.parent) == {"faq.csv", "out.csv.journal.jsonl"}
        assert KEY not in faq.with_name("out.csv.journal.jsonl").read_text(encoding="utf-8")
        code, _, stderr = appliance(*options)
    assert code == 0, stderr
    assert "8 replies are already in out.csv.journal.jsonl" in stderr
    assert len(server.answered) == len(set(server.answered)) == 16
    assert len(server.asked) == 17
    assert len(read_csv(faq.with_name("out.csv"))) == 52


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--base-url", "http://h/v1"], 4, "no model is named"),
        ([], 4, "no endpoint is named"),
        (["--local", "demo", "--model", "m"], 2, "expected one"),
        (["--base-url", "http://h/v1", "--model", "m", "--repetition-penalty", "1.2"], 2, "apply to --local only"),
        (["--local", "nowhere/at/all"], 2, "--local nowhere/at/all: expected a run directory"),
        (["--test-fraction", "0.6", "--val-fraction", "0.4"], 2, "leave no rows to train on"),
        (["--count", "0"], 2, "--count"),
    ],
)
def test_wrong_options_have_their_exit_code(
    options: list[str], code: int, message: str, appliance: Appliance, faq: Path
) -> None:
    got, stdout, stderr = appliance("paraphrase", faq, "out.csv", *options)
    assert (got, stdout) == (code, "")
    assert message in " ".join(stderr.split())
    assert names(faq.parent) == {"faq.csv"}


def test_nothing_is_asked_where_the_result_cannot_be_written(appliance: Appliance, faq: Path) -> None:
    taken = faq.with_name("out.csv")
    taken.write_text("mine", encoding="utf-8")
    with serving(rewording) as server:
        for out in (taken, faq, faq.with_name("no") / "out.csv", faq.parent):
            code, stdout, _ = appliance("paraphrase", faq, out, *endpoint(server))
            assert (code, stdout) == (3, "")
    assert server.asked == []
    assert taken.read_text(encoding="utf-8") == "mine"
    assert names(faq.parent) == {"faq.csv", "out.csv"}


def test_a_refusing_endpoint_leaves_nothing_behind(
    appliance: Appliance, faq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda _p, _n: Reply(status=401, body=f"bad key {KEY}")) as server:
        code, stdout, stderr = appliance("paraphrase", faq, "out.csv", *endpoint(server))
    assert (code, stdout) == (4, "")
    assert "answered 401: bad key ***" in stderr
    assert KEY not in stderr
    assert names(faq.parent) == {"faq.csv"}


def test_a_bad_input_is_an_error_of_the_data(appliance: Appliance, faq: Path, tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text('{"instruction": "a"}\n{"instr', encoding="utf-8")
    for command, path in (("self-instruct", "seeds.jsonl"), ("self-instruct", "gone.txt"), ("paraphrase", "gone.csv")):
        code, stdout, _ = appliance(command, path, "out.csv", "--base-url", "http://h/v1", "--model", "m")
        assert (code, stdout) == (3, "")
    assert names(tmp_path) == {"faq.csv", "seeds.jsonl"}
    assert faq.is_file()


def test_a_missing_input_is_not_told_to_change_a_recipe(appliance: Appliance) -> None:
    code, _, stderr = appliance("paraphrase", "gone.csv", "out.csv", "--dry-run")
    assert (code, stderr.splitlines()[0]) == (3, "Error: there is no file gone.csv")
    assert "--set" not in stderr


@pytest.mark.slow
def test_a_local_model_answers_and_goes_on_where_it_was_stopped(
    appliance: Appliance, base_dir: Path, faq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights end no answer: every reply is cut, none is usable, and all are paid for once."""
    from appliance.evaluation import generate

    calls: list[int] = []
    original = generate.answer

    def counted(model: object, prompt: object, rows: list[list[int]], **options: object) -> object:
        calls.append(len(rows))
        return original(model, prompt, rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "answer", counted)
    folder = shortened(base_dir, faq.with_name("model"))
    options = ["paraphrase", faq, "out.csv", "--count", 1, "--local", folder, "--max-tokens", 3, "--top-p", 0.9]
    code, stdout, stderr = appliance(*options)
    assert (code, stdout) == (3, "")
    assert "not a single usable paraphrase of 16 questions" in stderr
    assert calls == [16, 16]  # asked twice, as too few were usable; drawn anew the second time
    entries = [json.loads(line) for line in faq.with_name("out.csv.journal.jsonl").read_text("utf-8").splitlines()]
    assert {entry["unusable"] for entry in entries} == {"cut at 3 tokens"}
    assert len({(entry["prompt"], entry["reply"]) for entry in entries}) > 24  # a few of three tokens may fall alike
    assert appliance(*options)[0] == 3
    assert calls == [16, 16]


def shortened(base_dir: Path, folder: Path) -> Path:
    """The tiny base, whose 512 positions hold no whole prompt at a token a byte, with more of them and a template."""
    import shutil

    shutil.copytree(base_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


def test_a_run_without_a_merged_model_is_told_so(appliance: Appliance, faq: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: run\n", encoding="utf-8")
    code, _, stderr = appliance("paraphrase", faq, "out.csv", "--local", "run")
    assert code == 4
    assert "run has no merged model yet" in stderr


def test_the_csv_module_reads_what_was_written(appliance: Appliance, seeds: Path) -> None:
    """A reply with quotes, commas and line breaks stays one cell."""
    odd = '첫째, "둘째"\r\n셋째'
    with serving(lambda p, n: inventing(p, n) if "새로운" in p else json.dumps({"input": "", "output": odd})) as server:
        assert appliance("self-instruct", seeds, "out.csv", "--count", 2, *endpoint(server))[0] == 0
    with seeds.with_name("out.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["output"] for row in csv.DictReader(stream)] == [odd] * 2
