"""Every shipped recipe from its rows to its release, on a CPU, with a tiny model of the same architecture.

What a recipe says stays as it is, but for the base, the path of the rows, the length of the training, and what needs
CUDA. The demo's own run: tests/base_model/test_demo.py.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from datasets_src.pairs import Pair
from datasets_src.sources import delimited, qa_text, records
from tests.conftest import read_csv, write_qa
from tests.datasets_src.test_endpoint import serving
from tests.datasets_src.test_self_instruct import inventive
from tests.helpers import loopback_hub, warm
from tests.helpers.models import Family, tiny_base
from tests.helpers.tokenizer_kinds import KINDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("warm"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

FRUITS = ["사과", "배", "감", "귤", "밤"]
ROWS = [(f"{FRUITS[i % 5]} {i}?", f"{FRUITS[i % 5]}!") for i in range(40)]
# In place of the large base and of CUDA, and a training of seconds. A tiny model may well get worse: see `run`.
SMALL = {
    "engine": "transformers",
    "model.load_in_4bit": "false",
    "model.max_seq_length": "auto",
    "train.max_steps": "6",
    "train.warmup_steps": "0",
    "train.optimizer": "adamw_torch",
    "train.learning_rate": "2e-2",
    "train.batch_size": "8",
    "train.eval_every": "3",
    "evaluate.max_new_tokens": "8",
    "publish.min_stop_rate": "0",
    "rehearse": "never",
}


def run(recipe: str, base_dir: Path, csv: Path, runs: Path, **changes: str) -> Path:
    """The run directory of the whole way, whatever the verdict on a model that tiny."""
    settings = {**SMALL, "model.id": str(base_dir), "data.csv": str(csv), **changes}
    resolved = resolve.load(recipe, overrides=[f"{key}={value}" for key, value in settings.items()], environ={})
    path = runs / resolved.recipe.name
    pipeline_run.run(resolved, RunDir(path), runs / "cache", even_if_worse=True)
    figures = files.read_json(path / "evaluate" / "metrics.json")
    assert figures["tuned"]["loss"] < figures["base"]["loss"]
    assert files.read_json(path / "merge" / "proof.json")["passed"]
    assert (path / "publish" / "release" / "model" / "README.md").is_file()
    assert (path / "train" / "loss.png").stat().st_size > 1000
    return path


def page(path: Path) -> str:
    return (path / "report.html").read_text(encoding="utf-8")


def csv_of(pairs: Sequence[Any], path: Path) -> Path:
    assert all(isinstance(pair, Pair) for pair in pairs)
    return write_qa(path, [(pair.instruction, pair.output) for pair in pairs])


FAMILIES: dict[str, Family] = {"chatbot-cpu": "llama", "default": "qwen3"}


@pytest.mark.parametrize("name", FAMILIES)
def test_chatbot_cpu_and_default_reach_a_release(name: str, tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", family=FAMILIES[name], short_prompts=True)
    header = ("Q", "A") if name == "chatbot-cpu" else ("instruction", "output")
    path = run(name, base_dir, write_qa(tmp_path / "rows.csv", ROWS, header), tmp_path)
    assert {p.name for p in (path / "publish" / "release").iterdir()} == {"model", "adapter"}


def test_kanana_full_ft(tmp_path: Path) -> None:
    """The three kinds of input, the questions masked, every weight trained, the same questions before and after."""
    base_dir = tiny_base(tmp_path / "base", tied=True)
    text, lines, document = tmp_path / "data.txt", tmp_path / "lines.txt", tmp_path / "data.json"
    text.write_text("".join(f"<|question|>\n{q}\n<|answer|>\n{a}\n" for q, a in ROWS), encoding="utf-8")
    lines.write_text("".join(f"{q}  |  {a}\n" for q, a in ROWS), encoding="utf-8")
    document.write_text(json.dumps([{"question": q, "answer": a} for q, a in ROWS]), encoding="utf-8")
    three = [
        [(pair.instruction, pair.output) for pair in found if isinstance(pair, Pair)]
        for found in (qa_text.pairs(text), delimited.pairs(lines, pattern=r"\s+\|\s+"), records.pairs(document))
    ]
    assert three == [ROWS] * 3
    asked = tmp_path / "questions.txt"
    asked.write_text("너는 누구야?\n\n사과는 얼마나 달아? 아주 긴 질문이라서 앞을 채워야 하지.\n", encoding="utf-8")
    path = run(
        "kanana-full-ft",
        base_dir,
        csv_of(list(qa_text.pairs(text)), tmp_path / "train.csv"),
        tmp_path,
        **{"evaluate.extra_prompts": str(asked), "evaluate.train_questions": "3", "train.learning_rate": "5e-3"},
    )
    assert files.read_json(path / "evaluate" / "measures.json")["val_loss"]["compute_dtype"] == "bfloat16"
    assert {p.name for p in (path / "publish" / "release").iterdir()} == {"model"}  # full tuning: no adapter, no merge
    before, after = load_file(base_dir / "model.safetensors"), load_file(path / "merge/model/model.safetensors")
    assert [name for name in before if torch.equal(before[name], after[name])] == []

    answers = read_csv(path / "evaluate" / "extra_answers.csv")
    assert [row["from"] for row in answers] == ["extra"] * 2 + ["train"] * 3
    assert answers[1]["question"].startswith("사과는 얼마나")
    known = {row["row"]: row for row in read_csv(path / "prepare" / "train.csv")}
    assert all(known[row["row"]]["output"] == row["wanted"] for row in answers[2:])
    assert any(row["base"] != row["tuned"] for row in answers)
    assert "너는 누구야?" in page(path)
    # each answer is the one that the model gives alone: padding on the left and its mask change nothing
    for who, folder in (("base", base_dir), ("tuned", path / "train" / "model")):
        prompt = prompt_format.from_folder("qa_tokens", path / "train" / "model")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        agreed = 0
        for row in answers:
            ids = torch.tensor([prompt.prompt_ids(prompt_format.user_message(row["question"]))])
            said = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
            )
            agreed += prompt.answer_text(said[0, ids.shape[1] :].tolist()) == row[who]
        assert agreed >= 4, who  # of 5: near-ties may flip in bfloat16


@pytest.mark.parametrize("method", ["full", "lora"])
def test_kogpt2_cpu(method: str, tmp_path: Path) -> None:
    """Conv1D, a tokenizer that names neither EOS nor padding, and answers drawn before and after."""
    words = KINDS["metaspace"]()
    base_dir = tiny_base(tmp_path / "base", family="gpt2", tied=True, words=words)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (base_dir / name).unlink(missing_ok=True)
    config = files.read_json(base_dir / "config.json")
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(text) for name, text in (("eos", "</s>"), ("pad", "<pad>"))}
    files.write_json(base_dir / "config.json", config | ids)
    csv = write_qa(tmp_path / "rows.csv", ROWS)
    changes = {"tuning.method": method} | ({"train.learning_rate": "5e-3"} if method == "full" else {})
    path = run("kogpt2-cpu", base_dir, csv, tmp_path, **changes)

    released = path / "publish" / "release" / "model"
    tokenizer = AutoTokenizer.from_pretrained(released)
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("</s>", "<pad>", len(words))
    vocabulary = json.loads((base_dir / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert json.loads((released / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"] == vocabulary
    assert tokenizer("배송은 이틀", add_special_tokens=False)["input_ids"] == words.encode(
        "배송은 이틀", add_special_tokens=False
    )
    merged, stored = load_file(released / "model.safetensors"), load_file(base_dir / "model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    assert merged[name].shape == stored[name].shape == (64, 192)  # (in, out): transposed, as it was
    assert not torch.equal(merged[name], stored[name])
    answers = read_csv(path / "evaluate" / "extra_answers.csv")
    assert len(answers) == 3 + 10
    assert any(row["base"] != row["tuned"] for row in answers)


def test_llama2_korquad(tmp_path: Path) -> None:
    """With and without paraphrases: one table over the same held-out questions, and another model's answers in it."""
    base_dir = tiny_base(tmp_path / "base", short_prompts=True)
    korquad = {"version": "KorQuAD_v1.0", "data": [{"title": "과일", "paragraphs": [{"context": "", "qas": []}]}]}
    paragraph = korquad["data"][0]["paragraphs"][0]  # type: ignore[index]
    paragraph["context"] = " ".join(answer for _, answer in ROWS)
    for i, (question, answer) in enumerate(ROWS):
        answers = [{"text": answer, "answer_start": paragraph["context"].index(answer)}]
        paragraph["qas"].append({"id": f"{i}", "question": question, "answers": answers})
    (tmp_path / "korquad.json").write_text(json.dumps(korquad, ensure_ascii=False), encoding="utf-8")

    def reworded(prompt: str, _n: int) -> str:
        asked = next(question for question, _ in ROWS if f"{question}\n" in f"{prompt}\n")
        return "\n".join(f"{n}. {n}번째로 {asked}" for n in range(1, 11))

    with serving(reworded) as server:
        environ = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_MODEL": "m"}
        appliance(tmp_path, environ, "dataset", "korquad", "korquad.json", "plain.csv")
        appliance(tmp_path, environ, "dataset", "paraphrase", "plain.csv", "augmented.csv", "--count", "10")
    assert len(read_csv(tmp_path / "augmented.csv")) == 40 + 32 * 10
    until = {"train.max_steps": "4", "train.eval_every": "2"}
    plain = start("llama2-korquad", base_dir, tmp_path / "plain.csv", tmp_path, "prepare", **until)
    test = read_csv(plain / "prepare" / "test.csv")
    other = write_qa(tmp_path / "hosted.csv", [(r["instruction"], r["output"]) for r in test], ("question", "answer"))
    more = {**until, "evaluate.other_answers": str(other)}
    start("llama2-korquad", base_dir, tmp_path / "plain.csv", tmp_path, "evaluate", **more)
    augmented = {**until, "data.split": "column", "name": "with-paraphrases"}
    second = start("llama2-korquad", base_dir, tmp_path / "augmented.csv", tmp_path, "evaluate", **augmented)
    assert len(read_csv(second / "prepare" / "train.csv")) == 32 * 11
    assert files.read_json(plain / "evaluate" / "metrics.json")["other"]["exact_match"] == 1.0

    out = appliance(tmp_path, dict(os.environ), "report", str(plain), str(second), "--json")
    lines = json.loads(out)
    base = f"base model {base_dir.name} with the same prompt"  # of the ways to ask it, the best
    assert [line["name"] for line in lines] == ["llama2-korquad", "with-paraphrases", base, "hosted"]
    assert [line["exact_match"] for line in lines][-1] == 1.0
    for line, path in zip(lines, (plain, second), strict=False):
        figures = files.read_json(path / "evaluate" / "metrics.json")["tuned"]
        assert {key: line[key] for key in ("exact_match", "f1", "chrf")} == pytest.approx(
            {key: figures[key] for key in ("exact_match", "f1", "chrf")}
        )
    assert "hosted" in page(plain)


def test_self_instruct(tmp_path: Path) -> None:
    """JSON data to rows; seeds to rows with a model here and with one behind an endpoint; rows to a release."""
    base_dir = tiny_base(tmp_path / "base", family="qwen3", tied=True, short_prompts=True)
    data = [{"instruction": f"{n}개를 세어 줘.", "input": "", "output": f"{n}개입니다."} for n in range(20)]
    (tmp_path / "instructions.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    given = list(records.pairs(tmp_path / "instructions.json"))
    assert [pair.output for pair in given if isinstance(pair, Pair)] == [row["output"] for row in data]

    (tmp_path / "seeds.txt").write_text(
        "".join(f"{q} 무엇인지 설명해 주세요.\n" for q, _ in ROWS[:9]), encoding="utf-8"
    )
    local = ["dataset", "self-instruct", "seeds.txt", "local.csv", "--count", "2", "--local", str(base_dir)]
    done = appliance_run(tmp_path, dict(os.environ), *local, "--max-tokens", "4")
    # a random model invents nothing that can be used: it is asked, and says so
    assert done.returncode == 3, done.stderr
    assert "on this machine" in done.stderr

    with serving(lambda prompt, _n: inventive([prompt])[0]) as server:
        environ = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_MODEL": "m"}
        appliance(tmp_path, environ, "dataset", "self-instruct", "seeds.txt", "raw_data.csv", "--count", "24")
    run("self-instruct", base_dir, tmp_path / "raw_data.csv", tmp_path)


def test_llama3_ko_alpaca(tmp_path: Path) -> None:
    """Rows from a dataset repository, the notebook's split, and model, adapter and rows pushed."""
    base_dir = tiny_base(tmp_path / "base", short_prompts=True)
    raw = write_qa(tmp_path / "raw_data.csv", ROWS)
    with loopback_hub.started(tmp_path / "hub") as hub:
        hub.add_repo("alice/rows", type="dataset", private=True, files={"raw_data.csv": raw.read_bytes()})
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {
            **SMALL,
            "model.id": str(base_dir),
            "data.csv": "hf://datasets/alice/rows/raw_data.csv",
            "publish.repo_id": "alice/tuned",
            "publish.dataset": "true",
        }
        flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        environ = {**kept, **hub.environ, "APPLIANCE_CACHE_DIR": str(tmp_path / "cache")}
        appliance(tmp_path, environ, "run", "llama3-ko-alpaca", "--even-if-worse", *flags)
        pushed = {
            part: hub.repo(f"alice/tuned{part}", "dataset" if part == "-dataset" else "model")["commits"][-1]["files"]
            for part in ("", "-adapter", "-dataset")
        }
    path = tmp_path / "runs" / "llama3-ko-alpaca"
    sides = {side: len(read_csv(path / "prepare" / f"{side}.csv")) for side in ("train", "val", "test")}
    assert sides == {"train": 28, "val": 8, "test": 4}  # 9:1, then 20 % of what is left
    assert "model.safetensors" in pushed[""]
    assert "adapter_model.safetensors" in pushed["-adapter"]
    names = {"train.csv", "val.csv", "test.csv", "train_ds.csv", "test_ds.csv", "rows.csv"}
    assert names <= pushed["-dataset"].keys()
    released = {name: read_csv(path / "publish" / "release" / "dataset" / name) for name in names}
    assert {name: len(rows) for name, rows in released.items() if "_ds" in name} == {
        "train_ds.csv": 36,
        "test_ds.csv": 4,
    }
    assert {name: pushed["-dataset"][name]["sha256"] for name in names} == {
        name: files.sha256_of(path / "publish" / "release" / "dataset" / name) for name in names
    }
    named = [row["side"] for row in released["rows.csv"]]
    assert {side: named.count(side) for side in sides} == sides


def test_every_shipped_recipe_is_run_somewhere() -> None:
    here = {"kanana-full-ft", "kogpt2-cpu", "llama2-korquad", "self-instruct", "llama3-ko-alpaca"}
    # tests/base_model/test_demo.py, tests/whole_runs/test_seq2seq.py, test_classify.py and test_extract.py
    elsewhere = {"demo", "seq2seq-instruct", "bert-classify", "bert-squad"}
    assert {*FAMILIES, *here, *elsewhere} == set(resolve.shipped())


def start(recipe: str, base_dir: Path, csv: Path, runs: Path, until: str, **changes: str) -> Path:
    settings = {**SMALL, "model.id": str(base_dir), "data.csv": str(csv), **changes}
    resolved = resolve.load(recipe, overrides=[f"{key}={value}" for key, value in settings.items()], environ={})
    path = runs / resolved.recipe.name
    pipeline_run.run(resolved, RunDir(path), runs / "cache", until=until)
    return path


def appliance_run(folder: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.typed(shlex.join(["appliance", *arguments]), cwd=folder, env=environ)


def appliance(folder: Path, environ: dict[str, str], *arguments: str) -> str:
    """stdout of a command that has to succeed."""
    done = appliance_run(folder, environ, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
