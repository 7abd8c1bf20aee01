"""Val questions answered at each evaluation: kept, shown, and without effect on what is learned."""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len

from appliance.base_model import find as base_model_find
from appliance.base_model.base import Base
from appliance.engines.transformers import TransformersEngine
from appliance.errors import RunDirError
from appliance.evaluation import generate
from appliance.machine import device as machine_device
from appliance.pipeline import prepare, train
from appliance.process import console, files
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import DataSection, EvaluateSection, ModelSection, TrainSection, TuningSection
from appliance.rows import csv_file
from appliance.rundir import results
from appliance.tasks import causal
from appliance.training import samples, trainer, validation
from tests.conftest import write_qa

pytestmark = pytest.mark.slow
NEW_TOKENS = 6
FILE = results.SAMPLES


class Killed(BaseException):
    """As little as a kill lets this process do."""


@pytest.fixture(scope="module")
def base(base_dir: Path) -> Base:
    return base_model_find.resolve(str(base_dir), None, base_dir)


@pytest.fixture(scope="module")
def prepare_dir(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    names = ["사과", "배", "감", "귤", "밤"]
    qa_csv = write_qa(folder / "rows.csv", [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)])
    prepare.run(
        csv_path=qa_csv,
        data=DataSection(csv=str(qa_csv)),
        prompt=prompt_format.from_folder("alpaca", base.dir),
        max_seq_length=None,
        longest_possible=512,
        seed=1,
        stage_dir=folder,
    )
    return folder


def fit(base: Base, prepare_dir: Path, stage_dir: Path, **changes: Any) -> Path:
    """A training of eight steps with dropout, which draws random numbers in each of them."""
    stage_dir.mkdir(parents=True, exist_ok=True)
    device = machine_device.device()
    settings = {"max_steps": 8, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0}
    settings |= {"optimizer": "adamw_torch", "eval_every": 4, "patience": 9}
    train.run(
        engine=TransformersEngine(device, causal.TASK),
        device=device,
        base=base,
        model=ModelSection(id=str(base.dir), load_in_4bit=False),
        tuning=TuningSection(r=4, alpha=8, dropout=0.1),
        train=TrainSection(**{**settings, **changes}),
        evaluate=EvaluateSection(max_new_tokens=NEW_TOKENS),
        prompt_name="alpaca",
        max_seq_length=256,
        cut_long_rows=False,
        prepare_dir=prepare_dir,
        stage_dir=stage_dir,
        trained_dir=stage_dir / "adapter",
        task=causal.TASK,
    )
    return stage_dir


@pytest.fixture(scope="module")
def asked(base: Base, prepare_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(base, prepare_dir, tmp_path_factory.mktemp("asked"))


def answers(stage_dir: Path) -> dict[int, list[str]]:
    return {line["step"]: [one["answer"] for one in line["rows"]] for line in results.read_samples(stage_dir / FILE)}


def trained(stage_dir: Path) -> tuple[str, list[float]]:
    """The adapter's hash and every loss."""
    lines = results.read_metrics(stage_dir / "metrics.jsonl")
    figures = [line[key] for line in lines for key in ("loss", "val_loss", "grad_norm") if key in line]
    return files.sha256_of(stage_dir / "adapter" / "adapter_model.safetensors"), figures


def test_the_same_questions_are_answered_at_each_evaluation(asked: Path, prepare_dir: Path) -> None:
    lines = results.read_samples(asked / FILE)
    assert [line["step"] for line in lines] == [0, 4, 8]
    rows = {row.line: (row.instruction, row.output) for row in csv_file.iter_canonical(prepare_dir / "val.csv")}
    for line in lines:
        seen = {one["row"]: (one["question"], one["wanted"]) for one in line["rows"]}
        assert len(seen) == 3
        assert seen == {row: rows[row] for row in seen}
        assert list(seen) == [one["row"] for one in lines[0]["rows"]]
    assert answers(asked)[0] != answers(asked)[8]
    assert stat.S_IMODE((asked / FILE).stat().st_mode) == 0o600


def test_training_learns_the_same_with_and_without(asked: Path, base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    """To the bit, with dropout: neither random numbers nor modes of the model are left changed."""
    without = fit(base, prepare_dir, tmp_path / "without", sample_answers=0)
    assert not (without / FILE).exists()
    assert trained(without) == trained(asked)


def test_the_last_answers_are_those_of_the_trained_model(asked: Path, base: Base) -> None:
    """In evaluation's prompt, with its decoding."""
    engine = TransformersEngine(machine_device.device(), causal.TASK)
    settings = ModelSection(id=str(base.dir), load_in_4bit=False)
    model, tokenizer = engine.load_for_inference(base.dir, settings, asked / "adapter")
    assert files.read_json(asked / "fit.json")["best_step"] == 8
    prompt = prompt_format.from_transformers("alpaca", tokenizer)
    rows = results.read_samples(asked / FILE)[-1]["rows"]
    ids = [prompt.prompt_ids(prompt_format.user_message(one["question"], "")) for one in rows]
    given = generate.answer(model, prompt, ids, max_new_tokens=NEW_TOKENS, task=causal.TASK)
    assert [one.text for one in given] == [one["answer"] for one in rows]


def test_no_step_has_two_lines_after_a_kill(
    asked: Path, base: Base, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when step 8 had been evaluated and its checkpoint was not written: it is trained and asked again."""
    save = trainer.OrderedTrainer._save_checkpoint

    def dies(self: trainer.OrderedTrainer, *args: Any) -> None:
        if self.state.global_step == 8:
            raise Killed
        save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.OrderedTrainer, "_save_checkpoint", dies)
        with pytest.raises(Killed):
            fit(base, prepare_dir, tmp_path / "killed")
    path = tmp_path / "killed" / FILE
    assert list(answers(tmp_path / "killed")) == [0, 4, 8]
    with path.open("a", encoding="utf-8") as handle:
        handle.write('{"step": 8, "ro')  # and in the middle of a line
    fit(base, prepare_dir, tmp_path / "killed")
    assert path.read_bytes() == (asked / FILE).read_bytes()


def test_too_little_memory_for_answers_ends_no_training(
    asked: Path,
    base: Base,
    prepare_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = []

    def too_small(*args: Any, **_: Any) -> Any:
        torch.rand(3)  # what was drawn until then is given back too
        calls.append(args)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(generate, "answer", too_small)
    stage_dir = fit(base, prepare_dir, tmp_path / "small")
    assert trained(stage_dir) == trained(asked)
    assert len(calls) == 1
    assert capsys.readouterr().err.count("sample answers: out of memory; training goes on without them") == 1
    assert not (stage_dir / FILE).exists()


def test_groups_give_one_row_each_before_any_gives_two(prepare_dir: Path, tmp_path: Path) -> None:
    groups = {2: "a", 3: "a", 5: "b", 7: "b", 11: "c"}
    text = "row,group\n" + "".join(f"{row},{group}\n" for row, group in groups.items())
    (tmp_path / validation.GROUPS_FILE).write_text(text, encoding="utf-8")
    assert samples.chosen(3, 1, tmp_path) == [2, 5, 11]
    assert len({groups[row] for row in samples.chosen(2, 1, tmp_path)}) == 2
    assert {2, 5, 11} < set(samples.chosen(4, 1, tmp_path))
    assert samples.chosen(9, 1, tmp_path) == sorted(groups)
    assert samples.chosen(0, 1, tmp_path) == []
    firsts = {tuple(samples.chosen(1, seed, tmp_path)) for seed in range(20)}
    assert firsts == {(2,), (5,), (11,)}
    earlier = tmp_path / "earlier"  # prepared by a version that wrote no groups
    earlier.mkdir()
    (earlier / "val.csv").write_bytes((prepare_dir / "val.csv").read_bytes())
    lines = [row.line for row in csv_file.iter_canonical(prepare_dir / "val.csv")]
    assert samples.chosen(len(lines), 1, earlier) == lines


@pytest.mark.parametrize(
    "rows", ["5", '[{"row": 2}]', '[{"row": "2", "question": "a", "wanted": "b", "answer": "c"}]', "[[]]", "null"]
)
def test_damaged_samples_are_refused(rows: str, tmp_path: Path) -> None:
    path = tmp_path / "train" / FILE
    path.parent.mkdir()
    path.write_text(f'{{"step": 0, "rows": {rows}}}\n', encoding="utf-8")
    with pytest.raises(RunDirError, match=r"samples\.jsonl is damaged: ") as caught:
        results.read_samples(path)
    assert caught.value.hint == "make it again with --redo train"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_row_is_shown_in_one_line_of_a_terminal_and_nowhere_else(
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Wide characters are measured, what acts in a terminal is made visible, and no log has it."""
    caplog.set_level(logging.DEBUG)
    parts = ("step 40", "│", "배송비는 얼마인가요?\n제주도입니다" * 3, "│", "모릅니다", "→", "\x1b[31m3,000원 " * 9)
    console.glimpse(*parts)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console._stderr, "_force_terminal", True)
    monkeypatch.setattr(console._stderr, "_width", columns)
    monkeypatch.setattr(console._stderr, "no_color", True)
    console.glimpse(*parts)
    (line,) = capsys.readouterr().err.splitlines()
    shown = line.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert cell_len(shown) in (columns - 1, columns)
    assert shown.startswith("step 40 │ 배송비는 ")
    assert "… │ 모릅니다 → \\x1b[31m3,000원" in shown
    assert not caplog.records
