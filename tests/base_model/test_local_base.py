"""Where a base comes from, as far as that needs no network: folders, the demo, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.base_model import demo, tokenizer_trial
from appliance.base_model import find as base_model_find
from appliance.base_model.base import Base
from appliance.base_model.find import resolve
from appliance.errors import EnvironmentUnavailable, HubError, RecipeError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"model_type": "llama", "max_position_embeddings": 512, "dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizers of these bases are none; tests/base_model/test_tokenizer_trial.py is about those."""
    monkeypatch.setattr(tokenizer_trial, "refuse_unusable", lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that count; what is in the weights plays no part here."""
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (path / "model-00001-of-00002.safetensors").write_bytes(b"first")
    (path / "model-00002-of-00002.safetensors").write_bytes(b"second")
    return path


def _config(folder: Path, **more: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | more), encoding="utf-8")


# --- a local folder


def test_a_folder_is_a_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = resolve("my-model", None, tmp_path / "cache")
    assert base.dir == folder  # absolute: a stage may run elsewhere
    assert (base.public_id, base.revision, base.license) == ("my-model", None, None)
    assert (base.max_positions, base.stored_dtype) == (512, "bfloat16")
    assert not (tmp_path / "cache").exists()


def test_a_snapshot_of_the_hubs_cache_is_what_it_was_fetched_as(folder: Path, tmp_path: Path) -> None:
    """Its files still identify it: nobody has compared them with the Hub's."""
    snapshot = tmp_path / "hub" / "models--maker--base-1--x" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    base = resolve(str(snapshot), None, tmp_path)
    assert (base.public_id, base.revision, base.is_on_hub) == ("maker/base-1--x", COMMIT, True)
    assert base.identity == resolve(str(folder), None, tmp_path).identity


def test_a_folder_that_is_said_to_be_on_the_hub(folder: Path, tmp_path: Path) -> None:
    base = base_model_find.base_of(str(folder), "v1", tmp_path, "maker/base")
    assert (base.public_id, base.revision, base.is_on_hub) == ("maker/base", "v1", True)
    assert not resolve(str(folder), None, tmp_path).is_on_hub


def test_the_public_name_never_is_a_local_path(folder: Path, tmp_path: Path) -> None:
    assert str(tmp_path) not in resolve(str(folder) + "/", None, tmp_path).public_id


@pytest.mark.parametrize(
    ("config", "stored"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": "float32"}, "bfloat16"),
        ({"dtype": None}, "bfloat16"),
    ],
)
def test_the_merged_model_keeps_the_16_bit_type_of_its_base(folder: Path, config: dict[str, Any], stored: str) -> None:
    _config(folder, **config)
    assert Base(folder, "x", None, None).stored_dtype == stored


def test_a_config_without_a_limit_sets_none(folder: Path) -> None:
    _config(folder, max_position_embeddings=None)
    assert Base(folder, "x", None, None).max_positions == 1 << 20


# --- the licence

CARD = "---\nlanguage: ko\nlicense: {}\n---\n# Model\n"


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        (CARD.format("apache-2.0"), "apache-2.0"),
        (CARD.format("llama3.1").replace("\n", "\r\n"), "llama3.1"),
        (CARD.format("''"), None),
        ("---\nlanguage: ko\n---\n", None),
        ("# Model\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- license\n---\n", None),
        ("", None),
    ],
)
def test_the_licence_is_the_one_that_the_card_names(folder: Path, card: str, license_: str | None) -> None:
    (folder / "README.md").write_bytes(card.encode())
    assert resolve(str(folder), None, folder).license == license_


def test_a_card_in_another_encoding_is_no_obstacle(folder: Path) -> None:
    (folder / "README.md").write_bytes((CARD.format("mit") + "한국어").encode("cp949"))
    assert resolve(str(folder), None, folder).license == "mit"


# --- identity


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json", "config.json"])
def test_one_flipped_byte_is_another_base(folder: Path, tmp_path: Path, name: str) -> None:
    before = Base(folder, "x", None, None).identity
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    assert Base(other, "x", None, None).identity == before  # where it lies plays no part
    changed = bytearray((other / name).read_bytes())
    changed[-1] ^= 1
    (other / name).write_bytes(changed)
    assert Base(other, "x", None, None).identity != before


def test_a_renamed_file_is_another_base(folder: Path) -> None:
    before = Base(folder, "x", None, None).identity
    (folder / "tokenizer.json").rename(folder / "tokenizer_config.json")
    assert Base(folder, "x", None, None).identity != before


def test_files_that_no_result_depends_on_do_not_count(folder: Path) -> None:
    before = Base(folder, "x", None, None).identity
    for name in ("README.md", "LICENSE.txt", "NOTICE", "consolidated.safetensors", "optimizer.pt"):
        (folder / name).write_text("new", encoding="utf-8")
    assert Base(folder, "x", None, None).identity == before


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "chat_template.jinja", "tokenizer.model"])
def test_every_file_that_is_loaded_counts(folder: Path, name: str) -> None:
    seen = {Base(folder, "x", None, None).identity}
    for text in ("a b", "b a"):
        (folder / name).write_text(text, encoding="utf-8")
        seen.add(Base(folder, "x", None, None).identity)
    assert len(seen) == 3


def test_a_base_keeps_the_identity_that_its_run_recorded(folder: Path) -> None:
    before = Base(folder, "x", None, None).identity_by(1)
    (folder / "merges.txt").write_text("a b", encoding="utf-8")
    assert Base(folder, "x", None, None).identity_by(1) == before  # which did not cover it
    assert Base(folder, "x", None, None, recorded_identity=before).identity == before


def test_a_pinned_commit_is_identity_enough(tmp_path: Path) -> None:
    assert Base(tmp_path / "absent", "a/b", "c0ffee", None).identity == "a/b@c0ffee"


# --- what is refused


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _merged_inside(folder: Path) -> None:
    (folder / "merged").mkdir()
    (folder / "config.json").rename(folder / "merged" / "config.json")


def _without_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (_without_config, "has no config.json: it is not a transformers model"),
        (_merged_inside, "there is one in merged/"),
        (lambda folder: _config(folder, num_local_experts=8), "my-model is a mixture of experts"),
        (_without_weights, "has no safetensors weights"),
        (lambda folder: _config(folder, quantization_config={"quant_method": "bitsandbytes"}), "is already quantised"),
        (lambda folder: _config(folder, auto_map={"AutoModel": "x.Y"}), "needs custom code (auto_map"),
        (lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[1]", encoding="utf-8"), "config.json is damaged"),
    ],
)
def test_an_unusable_base_is_refused_with_the_way_on(folder: Path, spoil: Callable[[Path], object], seen: str) -> None:
    spoil(folder)
    with pytest.raises(EnvironmentUnavailable) as caught:
        resolve(str(folder), None, folder)
    assert seen in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["nonsense", "/no/such/folder", "./a/b", "../x", "~/model", "a/b/c", "/b"])
def test_a_name_that_can_be_no_model_is_not_asked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model_find, "_find_on_hub", None)
    with pytest.raises(RecipeError, match="neither a folder, nor USER/NAME on the Hub, nor `demo`") as caught:
        resolve(name, None, tmp_path)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["no body/model", "nobody/" + "x" * 100, "nobody/-"])
def test_a_name_that_the_hub_never_accepts_is_refused_with_the_rule(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be a repository on the Hub: "):
        resolve(name, None, tmp_path)


def test_without_a_network_the_hub_is_named(tmp_path: Path) -> None:
    """conftest.py sets HF_HUB_OFFLINE."""
    with pytest.raises(HubError) as caught:
        resolve("nobody/model", None, tmp_path)
    assert "the base model nobody/model cannot be fetched: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "HF_TOKEN" in caught.value.hint


def test_an_error_without_a_text_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Dead:
        def __init__(self, **_: object) -> None: ...

        def model_info(self, *_: object, **__: object) -> None:
            raise ConnectionResetError

    monkeypatch.setattr(huggingface_hub, "HfApi", Dead)
    with pytest.raises(HubError, match="ConnectionResetError"):
        resolve("nobody/model", None, tmp_path)


# --- the demo


def test_the_demo_base_is_made_on_the_spot(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def ensure_base(cache_dir: Path, *, on_progress: Callable[[str], None]) -> Path:
        asked.append(cache_dir)
        on_progress("step 50 of 500")
        return folder

    monkeypatch.setattr(demo, "ensure_base_apart", ensure_base)
    base = resolve("demo", None, tmp_path / "cache")
    assert asked == [tmp_path / "cache"]
    assert (base.dir, base.public_id, base.license) == (folder, "finetune-appliance/demo-base", "apache-2.0")
