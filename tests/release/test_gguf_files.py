"""GGUF files of a release: the proven ones and no others; what the card says; what is searched in their metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from appliance.process import files
from appliance.release import gguf_files, leak_scan
from appliance.rundir import exported, ledger, results
from appliance.rundir.directory import RunDir
from appliance.rundir.ledger import StageRecord
from appliance.weights import gguf_header

TOKEN = "hf_" + "aB3dE" * 7
PRIVATE = leak_scan.Private(names=("hongkildong",))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one exported type, and a release that holds it."""
    path = tmp_path / "run"
    (path / "export").mkdir(parents=True)
    (path / "merge").mkdir()
    merged = StageRecord("f1", {}, {"model/a": {"size": 1, "sha256": "1"}}, 0.0, "", "")
    ledger.write(path, "merge", merged)
    for name in exported.names("가게", "q8_0"):
        (path / "export" / name).write_text(f"of {name}", encoding="utf-8")
    gguf_file, modelfile = (files.sha256_of(path / "export" / name) for name in exported.names("가게", "q8_0"))
    one = {"file": "가게-q8_0.gguf", "size": 9, "sha256": gguf_file, "modelfile_sha256": modelfile}
    one["gates"] = [{"name": "gguf_is_complete", "passed": True, "measured": 0, "bound": 0, "meaning": ""}]
    write_export(path, {"made_from": exported.made_from(merged), "files": {"q8_0": one}})
    (path / "release").mkdir()
    gguf_files.link(path, "가게", ["q8_0"], path / "release")
    return path


def write_export(run: Path, record: dict[str, Any]) -> None:
    files.write_json(run / "export" / results.EXPORT, record)


def export_json(run: Path) -> dict[str, Any]:
    return dict(files.read_json(run / "export" / results.EXPORT))


def test_the_exported_files_pass(run: Path) -> None:
    gate = gguf_files.gate(run / "release", run, ["q8_0"])
    assert (gate.name, gate.passed, gate.measured) == ("exported_is_released", True, 0)


def _added(run: Path) -> None:
    (run / "release" / "other.gguf").write_bytes(b"GGUF")


def _changed(run: Path) -> None:
    path = run / "release" / "가게-q8_0.Modelfile"
    path.unlink()
    path.write_text("FROM ./other.gguf")


def _missing(run: Path) -> None:
    (run / "release" / "가게-q8_0.gguf").unlink()


def _refused(run: Path) -> None:
    record = export_json(run)
    record["files"]["q8_0"]["gates"][0]["passed"] = False
    write_export(run, record)


def _not_asked(run: Path) -> None:
    record = export_json(run)
    record["files"]["q8_0"]["gates"] = []
    write_export(run, record)


def _another_model(run: Path) -> None:
    ledger.write(run, "merge", StageRecord("f2", {}, {"model/a": {"size": 1, "sha256": "2"}}, 0.0, "", ""))


def _damaged(run: Path) -> None:
    (run / "export" / results.EXPORT).write_text('{"files": []}')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_added, "other.gguf"),
        (_changed, "가게-q8_0.Modelfile"),
        (_missing, "가게-q8_0.gguf"),
        (_refused, "q8_0: its gates did not pass"),
        (_not_asked, "q8_0: its gates did not pass"),
        (_another_model, "of another merged model"),
        (_damaged, "does not describe q8_0"),
    ],
)
def test_any_other_file_is_refused(spoil: Callable[[Path], None], says: str, run: Path) -> None:
    spoil(run)
    gate = gguf_files.gate(run / "release", run, ["q8_0"])
    assert not gate.passed
    assert says in gate.meaning


def test_a_type_that_was_not_asked_for_is_refused(run: Path) -> None:
    assert "가게-q8_0.gguf" in gguf_files.gate(run / "release", run, []).meaning


def test_what_is_due_is_judged_by_sizes_and_by_what_was_merged(run: Path) -> None:
    run_dir = RunDir(run)
    assert exported.is_due(run_dir, "가게", ["q8_0"])
    merged = run_dir.record("merge")
    assert merged is not None
    outputs = {
        name: {"size": (run / "export" / name).stat().st_size, "sha256": "x"} for name in exported.names("가게", "q8_0")
    }
    ledger.write(
        run, "export", StageRecord("e", {**exported.made_from(merged), "types": ["q8_0"]}, outputs, 0.0, "", "")
    )
    assert not exported.is_due(run_dir, "가게", ["q8_0"])
    assert not exported.is_due(run_dir, "가게", [])
    assert exported.is_due(run_dir, "가게", ["q8_0", "f16"])
    _another_model(run)
    assert exported.is_due(run_dir, "가게", ["q8_0"])


def test_the_card_shows_what_each_file_costs(run: Path) -> None:
    one = export_json(run)["files"]["q8_0"]
    scored = one | {
        "file": "가게-q4_k_m.gguf",
        "size": 5 << 20,
        "scores": {"exact_match": 0.25, "f1": 0.5, "facts_right": None, "kl": 0.0123},
        "cautions": [{"name": "gguf_below_the_verdict", "sentence": "q4_k_m answers worse", "rows": []}],
    }
    text = gguf_files.section({"q8_0": one, "q4_k_m": scored}, {"exact_match": 0.5, "f1": 0.75}, "me/shop")
    lines = text.splitlines()
    assert "| file | size | exact match | F1 | from the merged model |" in lines
    assert "| the merged model, as scored above |  | 50.0% | 75.0% | – |" in lines
    assert "| `가게-q8_0.gguf` | 9 B | – | – | – |" in lines
    assert "| `가게-q4_k_m.gguf` | 5.0 MiB | 25.0% | 50.0% | 0.012 nats |" in lines
    assert "> **Caution:** q4_k_m answers worse." in lines
    assert "llama-cli --hf-repo me/shop --hf-file 가게-q4_k_m.gguf --jinja --temp 0 -cnv" in lines
    assert "A file without figures was not run: llama.cpp was not installed where it was made." in lines


def gguf_file(
    path: Path, *, name: str = "shop", tokens: tuple[str, ...] = ("a", "b"), tensor: str = "output.weight"
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_block_count(2)
    writer.add_token_list(list(tokens))
    writer.add_token_scores([0.5] * len(tokens))
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor(tensor, np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_text_of_the_header_is_read(tmp_path: Path) -> None:
    found = list(gguf_header.read(gguf_file(tmp_path / "a.gguf", name="가게", tokens=("예", "no"))).texts())
    assert ("general.name", "가게") in found
    assert [text for key, text in found if key == "tokenizer.ggml.tokens"] == ["예", "no"]
    assert ("", "output.weight") in found


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"name": f"of {TOKEN}"}, "a string shaped like a Hub token (hf_…)"),
        ({"name": "/home/hong/shop"}, "a home folder"),
        ({"tensor": TOKEN}, "a string shaped like a Hub token (hf_…)"),
        ({"tokens": (TOKEN, "b")}, "a string shaped like a Hub token (hf_…)"),
        ({"name": "by hongkildong"}, "the name of this host or user"),
    ],
)
def test_what_must_not_leave_is_found_in_the_metadata(said: dict[str, Any], kind: str, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "a.gguf", **said)
    assert [hit.kind for hit in leak_scan.scan(path, (), PRIVATE)] == [kind]


def test_words_of_the_vocabulary_are_no_trace_and_tensors_are_not_read(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "a.gguf", tokens=("hongkildong", "/home/hong"))
    with path.open("ab") as handle:
        handle.truncate(1 << 33)  # 8 GiB, without taking them
    assert leak_scan.scan(path, (), PRIVATE) == []


@pytest.mark.parametrize("size", [0, 3, 30, 120])
def test_a_file_whose_header_cannot_be_read_is_not_released(size: int, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:size])
    (hit,) = leak_scan.scan(path, (), PRIVATE)
    assert "cannot be read" in hit.kind


def test_a_length_of_a_damaged_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + b"\xff" * 60)
    with pytest.raises(ValueError, match="within its header"):
        gguf_header.read(path)
