"""One contract for both engines: the same rows, files and answers, whichever of them loaded the model.

The real Unsloth runs here without a GPU, its rewritten trainer included, through Triton's interpreter
(tests/helpers/unsloth_on_cpu.py): Llama in float32, and Qwen3 in float16, where its fused LoRA kernels take part; the
Qwen3 never trained its EOS, so that two rows are trained beside the adapter. It does what a base over 1 B weights does
on a card: it rehearses, is stopped, resumes, evaluates, merges, proves and releases.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.recipe import resolve
from appliance.rundir import results
from appliance.rundir.directory import RunDir
from appliance.training.trainer import Ordered
from appliance.weights import proof
from tests.conftest import read_csv, write_qa
from tests.helpers import warm
from tests.helpers.engine_child import FULL, Request
from tests.helpers.models import Family, tiny_base, untrained_eos_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENGINES = ("unsloth", "transformers")
FAMILIES: dict[Family, str] = {"llama": "float32", "qwen3": "float16"}
ROWS = 20


@dataclass(frozen=True)
class Ran:
    """What the runs of one family left behind: by engine, the run directory and the report of its process."""

    folder: Path
    dtype: str
    runs: dict[str, Path]
    reports: dict[str, dict[str, Any]]
    stdout: str
    unsloth_cache: Path

    @property
    def loss_tolerance(self) -> float:
        """Relative; in float16 the two engines round at different places."""
        return 1e-5 if self.dtype == "float32" else 2e-3

    @property
    def unsloth(self) -> dict[str, Any]:
        return self.reports["unsloth"]


class Unsloth:
    """A process with Unsloth, which takes twenty seconds to import, and forks for the runs of each family."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self._spare, pipes = warm.server()
        command = [sys.executable, "-m", "tests.helpers.engine_child", "--serve", "unsloth", str(self.cache)]
        with (folder / "unsloth.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *map(str, pipes)],
                pass_fds=pipes,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        for pipe in pipes:
            os.close(pipe)
        self._log = folder / "unsloth.log"

    def run(self, path: Path, out_path: Path, err_path: Path) -> int:
        """The exit code of the request in `path`."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([str(path), str(out_path), str(err_path)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._log.read_text(encoding="utf-8")[-3000:]
        return int(answer)

    def end(self) -> None:
        self._process.communicate()  # its input ends
        os.waitpid(self._spare, 0)


@pytest.fixture(scope="module")
def unsloth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unsloth]:
    process = Unsloth(tmp_path_factory.mktemp("unsloth"))
    yield process
    process.end()


@pytest.fixture(scope="module", params=FAMILIES)
def ran(request: pytest.FixtureRequest, unsloth: Unsloth, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    family: Family = request.param
    folder = tmp_path_factory.mktemp(family)
    # few tokens and heads: Triton's interpreter takes a while for each
    write_qa(folder / "train.csv", [(f"감{i}", "네") for i in range(ROWS)])
    make = untrained_eos_base if family == "qwen3" else tiny_base
    base = make(folder / "base", family=family, hidden=32, layers=1, heads=2, short_prompts=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""name: run
engine: auto
model: {{id: {base}, load_in_4bit: false, dtype: {FAMILIES[family]}, max_seq_length: 512}}  # less: Unsloth's own
# gradient checkpointing gives way to torch's
data: {{csv: {folder / "train.csv"}}}
tuning: {{r: 4, alpha: 8, dropout: 0.0}}
train: {{max_steps: 2, micro_batch_size: 1, gradient_accumulation_steps: 2, learning_rate: 1e-2,
         optimizer: adamw_torch, eval_every: 1}}
evaluate: {{max_rows: 2, max_new_tokens: 3}}
publish: {{min_stop_rate: 0.0}}
rehearse: never
""",
        encoding="utf-8",
    )
    runs = {engine: folder / engine for engine in ENGINES}
    plain = _run(
        folder, Request("transformers", str(recipe), str(runs["transformers"]), "", "", until="train"), unsloth
    )
    shutil.copytree(runs["transformers"], folder / "handed-over")
    only_llama: dict[str, Any] = {}
    if family == "llama":
        tried = (str(folder / "dropout-unsloth"), str(folder / "dropout-plain"))
        lacking = shutil.copytree(base, folder / "lacking")
        tensors = load_file(base / "model.safetensors")
        del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
        only_llama = {"no_memory": str(folder / "no-memory"), "dropout": tried, "lacking": str(lacking)}
    fast = _run(
        folder,
        Request(
            "unsloth",
            str(recipe),
            str(runs["unsloth"]),
            "",
            "",
            pretend_cuda=True,
            unsloth_merge=str(folder / "merged-by-unsloth"),
            then=str(folder / "handed-over"),
            full=str(folder / "full-unsloth"),
            overrides=("rehearse=always",),
            stop_after=1,
            **only_llama,
        ),
        unsloth,
    )
    resolved = resolve.load(str(recipe), environ={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "subprocess", warm)
        pipeline_run.run(resolved, RunDir(runs["transformers"]), folder / "cache")
    shutil.copytree(runs["unsloth"], folder / "taken-over")
    for stage in ("evaluate", "merge", "publish"):
        shutil.rmtree(folder / "taken-over" / stage)
    pipeline_run.run(resolved, RunDir(folder / "taken-over"), folder / "cache", until="evaluate")
    full = resolve.load(str(recipe), overrides=FULL, environ={})
    pipeline_run.run(full, RunDir(folder / "full-transformers"), folder / "cache", until="evaluate")
    reports = {"transformers": plain[0], "unsloth": fast[0]}
    return Ran(folder, FAMILIES[family], runs, reports, fast[1], unsloth.cache)


def _run(folder: Path, request: Request, unsloth: Unsloth) -> tuple[dict[str, Any], str]:
    """(report, stdout) of a fork: of the process with Unsloth, or of this one."""
    path, out_path, err_path = (folder / f"{request.engine}.{suffix}" for suffix in ("json", "stdout", "stderr"))
    report_path = folder / f"{request.engine}.report.json"
    cache = unsloth.cache if request.engine == "unsloth" else folder / "cache"
    path.write_text(json.dumps(asdict(request) | {"cache": str(cache), "report": str(report_path)}), encoding="utf-8")
    if request.engine == "unsloth":
        code = unsloth.run(path, out_path, err_path)
    else:
        command = [sys.executable, "-m", "tests.helpers.engine_child", str(path)]
        with err_path.open("w", encoding="utf-8") as log:
            code = warm.run(command, stdout=log, stderr=log, env=os.environ, check=False).returncode
        out_path.touch()
    assert code == 0, err_path.read_text(encoding="utf-8")[-3000:]
    return files.read_json(report_path), out_path.read_text(encoding="utf-8")


def train_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are of a step."""
    return [line for line in results.read_metrics(run / "train" / "metrics.jsonl") if "loss" in line]


def metrics(run: Path) -> dict[str, Any]:
    return dict(files.read_json(run / "evaluate" / "metrics.json"))


def answers(run: Path) -> list[tuple[str, str]]:
    return [(row["base"], row["tuned"]) for row in read_csv(run / "evaluate" / "predictions.csv")]


@pytest.mark.parametrize("engine", ENGINES)
def test_it_trains_and_the_merge_is_proven(ran: Ran, engine: str) -> None:
    run = ran.runs[engine]
    lines = results.read_metrics(run / "train" / "metrics.jsonl")
    val_loss = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    assert sorted(val_loss) == [0, 1, 2]
    assert val_loss[2] < val_loss[0]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert files.read_json(run / "merge" / "proof.json")["passed"]
    assert files.read_json(run / "run.json")["engine"] == engine
    assert len(answers(run)) == 2
    assert (run / "publish" / "release" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_row_reaches_the_model_as_it_was_encoded(ran: Ran, engine: str) -> None:
    batches = ran.reports[engine]["batches"]
    assert len(batches) == 4
    assert batches == ran.reports["transformers"]["batches"]
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = [token for token in labels if token != -100]
            assert trained[-1] == 2  # EOS, once
            assert trained.count(2) == ids.count(2) == 1


def test_both_leave_the_same_files(ran: Ran) -> None:
    for part in ("train/adapter", "merge/model", "publish/release/model", "publish/release/adapter"):
        names = [{path.name for path in (ran.runs[engine] / part).iterdir()} for engine in ENGINES]
        assert names[0] == names[1], part
    configs = [files.read_json(ran.runs[e] / "train" / "adapter" / "adapter_config.json") for e in ENGINES]
    for key in ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias"):
        assert configs[0][key] == configs[1][key], key
    assert configs[0]["base_model_name_or_path"] == configs[1]["base_model_name_or_path"] == "base"
    for part in ("train/adapter/adapter_model.safetensors", "merge/model/model.safetensors"):
        shapes = [
            {name: (tensor.shape, tensor.dtype) for name, tensor in load_file(ran.runs[engine] / part).items()}
            for engine in ENGINES
        ]
        assert shapes[0] == shapes[1], part
    templates = [(ran.runs[e] / "publish/release/model/chat_template.jinja").read_text("utf-8") for e in ENGINES]
    assert templates[0] == templates[1]


def test_both_learn_the_same(ran: Ran) -> None:
    """The same seed draws the same first values, and the kernels compute the same but for rounding."""
    losses = [
        [
            line.get("loss", line.get("val_loss"))
            for line in results.read_metrics(ran.runs[e] / "train" / "metrics.jsonl")
        ]
        for e in ENGINES
    ]
    assert losses[0] == pytest.approx(losses[1], rel=ran.loss_tolerance)


def test_both_answer_the_same_val_questions_while_they_train(ran: Ran) -> None:
    """Unsloth's switch to decoding and back: by the tests above, training learns the same behind it.

    A run that was stopped after step 1 and resumed has each step once.
    """
    lines = [results.read_samples(ran.runs[engine] / "train" / results.SAMPLES) for engine in ENGINES]
    for one in lines:
        assert [line["step"] for line in one] == [0, 1, 2]
        assert all(row["wanted"] == "네" for line in one for row in line["rows"])
    if ran.dtype == "float32":  # in float16 so small a model has near-ties
        assert lines[0] == lines[1]


@pytest.mark.parametrize(("trained_by", "other"), [("transformers", "handed-over"), ("unsloth", "taken-over")])
def test_a_run_goes_on_with_the_other_engine(ran: Ran, trained_by: str, other: str) -> None:
    """An adapter trained by one is evaluated by the other, base and tuned, rows padded on either side."""
    mine, theirs = metrics(ran.runs[trained_by]), metrics(ran.folder / other)
    for who in ("base", "tuned"):
        assert theirs[who]["loss"] == pytest.approx(mine[who]["loss"], rel=ran.loss_tolerance)
    assert mine["tuned"]["loss"] < mine["base"]["loss"]
    if ran.dtype == "float32":  # in float16 so small a model has near-ties
        assert answers(ran.folder / other) == answers(ran.runs[trained_by])


def test_full_fine_tuning_is_the_same_by_both(ran: Ran) -> None:
    folders = [ran.folder / f"full-{engine}" for engine in ENGINES]
    losses = [[line.get("loss") for line in results.read_metrics(run / "train" / "metrics.jsonl")] for run in folders]
    assert [loss for loss in losses[0] if loss] == pytest.approx([loss for loss in losses[1] if loss], rel=1e-4)
    trained = [load_file(run / "train" / "model" / "model.safetensors") for run in folders]
    stored = load_file(ran.folder / "base" / "model.safetensors")
    assert trained[0].keys() == trained[1].keys() == stored.keys()
    for name, tensor in trained[0].items():
        assert tensor.dtype == trained[1][name].dtype == torch.float32
        assert not torch.equal(tensor, stored[name].float()), name
    for who in ("base", "tuned"):
        assert metrics(folders[0])[who]["loss"] == pytest.approx(metrics(folders[1])[who]["loss"], rel=1e-3)


def test_our_merge_is_unsloths_own(ran: Ran) -> None:
    ours = load_file(ran.runs["unsloth"] / "merge" / "model" / "model.safetensors")
    theirs = load_file(ran.folder / "merged-by-unsloth" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.bfloat16
        if ran.dtype == "float16" and name == "lm_head.weight":  # Unsloth rounds EOS's row to float16 in between
            assert torch.allclose(tensor, theirs[name], rtol=2**-7, atol=0.0)
            apart = (tensor != theirs[name]).any(1).nonzero().flatten().tolist()
            assert set(apart) <= {2}
        else:
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("ran", ["qwen3"], indirect=True)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_row_of_an_eos_that_the_base_never_learned_is_trained(ran: Ran, engine: str) -> None:
    """In the head; what the prompt never holds stays as it is in the embeddings."""
    trained = load_file(ran.runs[engine] / "train" / "adapter" / "adapter_model.safetensors")
    merged = load_file(ran.runs[engine] / "merge" / "model" / "model.safetensors")
    stored = load_file(ran.folder / "base" / "model.safetensors")
    for module, changed in (("model.embed_tokens", []), ("lm_head", [2])):
        name = f"{module}.weight"
        assert (merged[name] != stored[name]).any(1).nonzero().flatten().tolist() == changed
        row = trained[f"base_model.model.{module}.token_adapter.trainable_tokens_delta"]
        assert row.dtype == torch.float32
        assert torch.equal(merged[name][2], row[0].to(torch.bfloat16))


def test_our_trainer_stands_on_the_one_that_unsloth_rewrote_and_its_methods_are_called(ran: Ran) -> None:
    between = ["Ordered", "LossTrainer", "LeanTrainer", "LeanSteps"]
    assert ran.unsloth["bases"][:6] == [*between, "UnslothSFTTrainer", "_UnslothSFTTrainer"]
    assert ran.reports["transformers"]["bases"][:5] == [*between, "SFTTrainer"]
    ours = {name for name, value in vars(Ordered).items() if callable(value) and not name.startswith("__")}
    never = {"name_rows_of_step", "_try_micro_batch", "_moments_to_come"}  # of a failure; of micro_batch_size: auto
    assert set(ran.unsloth["overrides"]) == ours - never


def test_it_is_rehearsed_stopped_and_resumed(ran: Ran) -> None:
    run = ran.runs["unsloth"]
    found = {line["what"]: line for line in files.read_json(run / "rehearse" / "table.json")}
    assert {line["verdict"] for line in found.values()} == {"ok"}
    assert "proven on" in found["rehearsed: merge"]["found"]
    assert " 0 tokens/s" not in found["training time"]["found"]
    assert ran.unsloth["stopped"] == ["stopped by SIGTERM after step 1; it is saved"]
    assert "continuing from step 1" in (run / "appliance.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_are_counted(ran: Ran, engine: str) -> None:
    """Two rows a step, one in each micro batch: nothing is padded."""
    lines = train_lines(ran.runs[engine])
    lengths = [
        [sum(map(sum, batch["attention_mask"])) for batch in ran.reports[engine]["batches"]][i : i + 2] for i in (0, 2)
    ]
    assert [line["tokens"] for line in lines] == [line["padded_tokens"] for line in lines] == list(map(sum, lengths))
    first, second = (line["tokens_per_second"] for line in lines)
    assert first is None  # of a process
    assert second is None if engine == "unsloth" else second > 0  # it was stopped between them


def test_evaluations_leave_no_trace_in_the_steps_after_them(ran: Ran) -> None:
    """They run in eval mode and make no logits; every step has Unsloth's gradient checkpointing, before and after."""
    training = [one for one in ran.unsloth["passes"] if one["training"]]
    evaluation = [one for one in ran.unsloth["passes"] if not one["training"]]
    assert [one["step"] for one in training] == [0, 0, 1, 1]
    assert {one["step"] for one in evaluation} == {0, 1, 2}
    assert not any(one["has_logits"] for one in ran.unsloth["passes"])
    assert [one["checkpointed"] for one in training] == [1, 1, 1, 1]  # the model has one block
    assert {one["checkpointed"] for one in evaluation} == {0}
    assert {one["modules_in_training"] for one in evaluation} == {0}
    assert len({one["modules_in_training"] for one in training}) == 1


@pytest.mark.parametrize("ran", ["llama"], indirect=True)
def test_dropout_is_replayed_when_activations_are_computed_again(ran: Ran) -> None:
    """Another mask in the backward pass would be another gradient."""
    folders = [ran.folder / f"dropout-{name}" for name in ("unsloth", "plain")]
    with_it, without, no_dropout = (train_lines(run)[0]["grad_norm"] for run in (*folders, ran.runs["unsloth"]))
    assert with_it == pytest.approx(without, rel=1e-5)
    assert with_it != pytest.approx(no_dropout, rel=1e-2)


@pytest.mark.parametrize("ran", ["llama"], indirect=True)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(ran: Ran) -> None:
    run = ran.folder / "no-memory"
    fit = files.read_json(run / "train" / "fit.json")
    assert (fit["batch"]["asked"], fit["batch"]["micro_batch_size"]) == (2, 1)
    losses = [[line["loss"] for line in train_lines(one)] for one in (run, ran.runs["transformers"])]
    assert losses[0] == pytest.approx(losses[1], rel=ran.loss_tolerance)


def test_unsloth_loads_no_base_that_lacks_a_tensor(ran: Ran) -> None:
    is_tried = ran.dtype == "float32"  # the llama
    assert ("the weights lack model.layers.0.mlp.up_proj.weight: the model" in ran.unsloth["refused"]) == is_tried


def test_unsloth_comes_first_from_one_module_and_reports_to_nobody(ran: Ran) -> None:
    seen = ran.reports["unsloth"]
    assert seen["before_unsloth"] == []
    assert seen["importers"] == ["appliance.engines.unsloth"]
    assert seen["frozen"] > 100_000  # what it imported: its loader collects garbage again and again
    assert seen["environment"].pop("UNSLOTH_DISABLE_STATISTICS") == "1"
    assert all(str(ran.unsloth_cache) in place for place in seen["environment"].values())
    assert ran.stdout == ""  # only results belong there; Unsloth's banner is in the log
    assert "Unsloth" in (ran.runs["unsloth"] / "appliance.log").read_text(encoding="utf-8")
