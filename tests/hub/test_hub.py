"""What is fetched of a base on the Hub, in which order, and what a refusal saves. The Hub is a function here."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from appliance.base_model import tokenizer_trial
from appliance.base_model.find import resolve
from appliance.errors import EnvironmentUnavailable
from appliance.hub import download
from appliance.hub import errors as hub_errors
from appliance.hub.cache import Expected, Snapshot, Source
from tests.base_model.test_local_base import CARD, COMMIT

GOOD = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
WEIGHTS = {"model.safetensors": "weights", "pytorch_model.bin": "pickle", "tokenizer.json": "{}"}


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizers of these bases are none; tests/base_model/test_tokenizer_trial.py is about those."""
    monkeypatch.setattr(tokenizer_trial, "refuse_unusable", lambda *_: None)


class FakeHub:
    """One repository of small files; `asked` records the files of each download."""

    def __init__(self, folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.files = folder, files
        self.asked: list[set[str]] = []
        monkeypatch.setattr(download, "snapshot_of", self.snapshot_of)
        monkeypatch.setattr(download, "obtain", self.obtain)

    def snapshot_of(self, source: Source, cache_dir: Path) -> Snapshot:
        assert (source.repo_id.count("/"), source.repo_type) == (1, "model")
        self.revision = source.revision
        files = {name: Expected(len(text)) for name, text in self.files.items()}
        return Snapshot(source.repo_id, source.repo_type, COMMIT, files, cache_dir)

    def obtain(self, source: Source, snapshot: Snapshot, names: Collection[str]) -> Path:
        assert (source.repo_id, snapshot.commit) == (snapshot.repo_id, COMMIT)
        self.asked.append(set(names))
        self.folder.mkdir(exist_ok=True)
        for name in names:
            (self.folder / name).write_text(self.files[name], encoding="utf-8")
        return self.folder

    @property
    def fetched(self) -> set[str]:
        return {path.name for path in self.folder.glob("*")}


def test_the_weights_are_fetched_once_the_config_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config.json": json.dumps(GOOD), "README.md": CARD.format("mit"), **WEIGHTS}
    fake = FakeHub(tmp_path / "snapshot", files, monkeypatch)
    base = resolve("a/Good", "v1", tmp_path)
    assert (base.public_id, base.revision, base.license, base.dir) == ("a/Good", COMMIT, "mit", fake.folder)
    assert fake.revision == "v1"
    assert fake.asked[0] == {"README.md", "config.json"}
    assert fake.fetched == {"config.json", "README.md", "model.safetensors", "tokenizer.json"}  # and nothing pickled


@pytest.mark.parametrize(
    ("name", "config", "seen", "hint"),
    [
        ("a/Good-bnb-4bit", {"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes", "x/Original"),
        ("a/Good-A3B", {"model_type": "qwen3_moe", "num_experts": 128}, "num_experts = 128", "Qwen/Qwen3-4B-Instruct"),
        ("a/Good-VL", {"vision_config": {"depth": 32}}, "vision_config", "choose a text model"),
    ],
)
def test_a_refusal_costs_no_weights(
    name: str, config: dict[str, Any], seen: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = "---\nbase_model: x/Original\n---\n"
    files = {"config.json": json.dumps(GOOD | config), "README.md": card, **WEIGHTS}
    fake = FakeHub(tmp_path / "snapshot", files, monkeypatch)
    with pytest.raises(EnvironmentUnavailable) as caught:
        resolve(name, None, tmp_path)
    assert f"the base model {name} is " in str(caught.value)
    assert str(tmp_path) not in str(caught.value)  # the user knows the id, not where the cache lies
    assert seen in str(caught.value)
    assert hint in caught.value.hint
    assert fake.fetched == {"config.json", "README.md"}
    assert len(fake.asked) == 1


def test_a_repository_of_gguf_files_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"README.md": "---\nbase_model: Qwen/Qwen3-4B\n---\n", "Qwen3-4B-Q8_0.gguf": "weights"}
    fake = FakeHub(tmp_path / "snapshot", files, monkeypatch)
    with pytest.raises(EnvironmentUnavailable, match=r"^a/Qwen3-4B-GGUF has no config\.json: .*\.gguf files") as caught:
        resolve("a/Qwen3-4B-GGUF", None, tmp_path)
    assert "Qwen/Qwen3-4B, as its card says" in caught.value.hint
    assert fake.fetched == {"README.md"}


def test_a_repository_without_safetensors_is_named_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(tmp_path / "snapshot", {"config.json": json.dumps(GOOD), "pytorch_model.bin": "pickle"}, monkeypatch)
    with pytest.raises(EnvironmentUnavailable, match=r"^a/Old has no safetensors weights"):
        resolve("a/Old", None, tmp_path)


def test_a_cache_of_another_user_is_no_fault_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = PermissionError(13, "Permission denied", "/cache/huggingface/hub")
    told = hub_errors.fetch_error(refused, Source("a/Good", "model", None, None, "check the network"))
    assert isinstance(told, EnvironmentUnavailable)
    assert str(told) == "the model cache cannot be written: /cache/huggingface/hub: Permission denied"
    monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "./runs")
    told = hub_errors.fetch_error(refused, Source("a/Good", "model", None, None, "check the network"))
    assert "docker volume rm finetune-appliance_cache" in told.hint
