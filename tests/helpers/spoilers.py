"""What can be wrong with a finished run: each function breaks one thing in its folder, or returns one that does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from appliance.process import files
from tests.helpers.finished import edit_json


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_json(path / name, **changes)


def refused_in_training(name: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "train" / "gates.json"
        gates = json.loads(file.read_text())["gates"]
        file.write_text(json.dumps({"gates": [{**g, "passed": g["name"] != name} for g in gates]}))

    return spoil


def measured(**changes: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "evaluate" / "measures.json"
        seen = json.loads(file.read_text())
        file.write_text(json.dumps({part: {**values, **changes.get(part, {})} for part, values in seen.items()}))

    return spoil


def another_adapter(path: Path) -> None:
    """As if it were another checkpoint's adapter: one value differs."""
    file = path / "train" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[min(tensors)][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def flip_a_weight(path: Path) -> None:
    file = path / "merge" / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def widen_a_norm(path: Path) -> None:
    """As if merge had written it so and recorded it: only the types are wrong."""
    file = path / "merge" / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, file, metadata={"format": "pt"})
    record_again(path)


def one_byte(path: Path) -> None:
    """Change a byte in the middle of a file: its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def record_again(path: Path, stage: str = "merge") -> None:
    """Rewrite the stage's stage.json as if it had left what is there now."""
    folder = path / stage
    record = json.loads((folder / "stage.json").read_text())
    record["outputs"] = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": files.sha256_of(file)}
        for file in folder.rglob("*")
        if file.is_file() and file.name != "stage.json" and file.relative_to(folder).parts[0] != "checkpoints"
    }
    (folder / "stage.json").write_text(json.dumps(record))


def configured(name: str, **changes: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        edit_json(path / "merge" / "model" / name, **changes)
        record_again(path)

    return spoil


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        for part in ("merge/model", "train/adapter"):
            file = path / part / name
            assert old in file.read_text(encoding="utf-8")
            file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        record_again(path)

    return spoil


def added(name: str, content: str = "") -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        (path / name).write_text(content, encoding="utf-8")
        record_again(path)

    return spoil


def logged(line: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with (path / "appliance.log").open("a", encoding="utf-8") as log:
            log.write(f"2026-01-01 INFO x: {line}\n")

    return spoil
