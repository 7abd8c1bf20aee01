"""What a base on the Hub would take is judged by its config and the sizes of its files, before its weights are here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save

from appliance import bounds
from appliance.base_model import find as base_model_find
from appliance.engines import memory
from appliance.errors import EnvironmentUnavailable
from appliance.machine import disk
from appliance.pipeline import run as pipeline_run
from appliance.preflight import disk_needs
from appliance.process import files
from appliance.recipe import resolve
from appliance.recipe.fields import TrainSection, TuningSection
from appliance.rundir.directory import RunDir
from tests.conftest import write_qa
from tests.helpers import loopback_hub
from tests.helpers.loopback_hub import LoopbackHub

BASE = "maker/base"
SMALL = {"config.json", "README.md", "model.safetensors.index.json"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Iterator[LoopbackHub]:
    with loopback_hub.started(tmp_path_factory.mktemp("hub")) as running:
        files = {path.name: path.read_bytes() for path in base_dir.iterdir() if path.is_file()}
        running.add_repo(BASE, private=False, files=files | {"README.md": b"---\nlicense: mit\n---\n"})
        yield running


@pytest.fixture
def web(running: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub, with an empty cache on this side."""
    for name, value in {**running.environ, "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    for name, constant in {
        "ENDPOINT": running.endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, constant)
    return running


def run(folder: Path, until: str, *, base: str = BASE) -> Path:
    """A run of a recipe on a base on the Hub up to a stage."""
    write_qa(folder / "train.csv", [(f"{i}?", "답") for i in range(40)])
    (folder / "shop.yaml").write_text(
        f"name: shop\nengine: transformers\nrehearse: never\nmodel: {{id: {base}, load_in_4bit: false}}\n"
        f"data: {{csv: {folder / 'train.csv'}}}\n",
        encoding="utf-8",
    )
    resolved = resolve.load(str(folder / "shop.yaml"), environ={})
    run_dir = RunDir(folder / "runs" / "shop")
    pipeline_run.run(resolved, run_dir, folder / "cache", until=until)
    return run_dir.path


def fetched(web: LoopbackHub, start: int) -> set[str]:
    """Names of the files whose content was asked for."""
    asked = [entry["path"].partition("?")[0] for entry in web.log()[start:] if entry["method"] == "GET"]
    return {path.rpartition("/")[2] for path in asked if "/resolve/" in path or "/_lfs/" in path}


@pytest.mark.usefixtures("web")
def test_sizes_are_the_same_before_and_after_the_weights_are_here(base_dir: Path, tmp_path: Path) -> None:
    base, local = (
        base_model_find.base_of(BASE, None, tmp_path / "cache"),
        base_model_find.resolve(str(base_dir), None, base_dir),
    )
    assert set(base.coming) == {path.name for path in base_dir.iterdir() if path.is_file()} - SMALL
    before = (base.weights_bytes, base.parameters, base.tokenizer_bytes)
    assert before == (local.weights_bytes, local.parameters, local.tokenizer_bytes)
    assert disk_needs.of_run(base, TuningSection(), TrainSection(), has_hard_links=True).merged > local.weights_bytes
    assert base_model_find.fetch(base) == base
    assert (base.coming, before) == ({}, (base.weights_bytes, base.parameters, base.tokenizer_bytes))


def test_shards_are_counted_by_the_index(tmp_path: Path) -> None:
    coming = {"model-1.safetensors": 10, "model-2.safetensors": 20, "other.safetensors": 40, "tokenizer.json": 80}
    assert memory.weights_bytes(tmp_path, coming) == 70
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    files.write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    assert memory.weights_bytes(tmp_path, coming) == 30
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 20)  # it came meanwhile
    del coming["model-2.safetensors"]
    assert memory.weights_bytes(tmp_path, coming) == 30


def test_check_fetches_no_weights_a_run_does(web: LoopbackHub, tmp_path: Path) -> None:
    start = len(web.log())
    path = run(tmp_path, "check")
    assert fetched(web, start) <= SMALL
    table = {line["what"]: line for line in files.read_json(path / "check" / "table.json")}
    assert table["base model"]["found"].startswith("maker/base, llama, ")
    assert table["disk"]["verdict"] == "ok"
    run(tmp_path, "prepare")
    assert not fetched(web, start) <= SMALL
    assert list((tmp_path / "hf").rglob("model.safetensors"))
    assert files.read_json(path / "run.json")["base"]["public_id"] == BASE


def test_weights_that_are_not_whole_are_refused_once_they_are_here(
    web: LoopbackHub, tmp_path: Path, base_dir: Path
) -> None:
    served = {path.name: path.read_bytes() for path in base_dir.iterdir() if path.is_file()}
    tensors = load_file(base_dir / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    web.add_repo("maker/lacking", private=False, files=served | {"model.safetensors": save(tensors)})
    run(tmp_path, "check", base="maker/lacking")
    with pytest.raises(EnvironmentUnavailable, match=r"not whole: model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        run(tmp_path, "prepare", base="maker/lacking")
    assert not (tmp_path / "runs" / "shop" / "prepare").exists()


def test_a_tokenizer_that_cannot_be_used_is_refused_once_it_is_here(
    web: LoopbackHub, tmp_path: Path, base_dir: Path
) -> None:
    served = {path.name: path.read_bytes() for path in base_dir.iterdir() if path.is_file()}
    template = (
        b"{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        b"{% if m['content'] == '10?' %}{{ 'a' * 10**14 }}{% endif %}{% endfor %}"  # the longest row, not the first
    )
    web.add_repo("maker/bomb", private=False, files=served | {"chat_template.jinja": template})
    run(tmp_path, "check", base="maker/bomb")
    with pytest.raises(
        EnvironmentUnavailable, match=r"chat_template.jinja: .* line 12 of the CSV took more than 2,048 MiB of memory"
    ):
        run(tmp_path, "prepare", base="maker/bomb")
    assert not (tmp_path / "runs" / "shop" / "prepare").exists()


def test_a_tokenizer_of_absurd_size_is_refused_before_a_download(
    web: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "LARGEST", {"tokenizer.json": 1000})
    start = len(web.log())
    with pytest.raises(
        EnvironmentUnavailable, match=rf"^{BASE}/tokenizer\.json: it has .* bytes, expected at most 1,000"
    ):
        run(tmp_path, "check")
    assert fetched(web, start) <= SMALL


def test_an_index_that_names_a_shard_the_hub_lacks_is_refused_before_a_download(
    web: LoopbackHub, tmp_path: Path, base_dir: Path
) -> None:
    served = {path.name: path.read_bytes() for path in base_dir.iterdir() if path.is_file()}
    weights, start = served.pop("model.safetensors"), len(web.log())
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    served |= {"model-1.safetensors": weights, "model.safetensors.index.json": index}
    web.add_repo("maker/torn", private=False, files=served)
    with pytest.raises(EnvironmentUnavailable, match=r"weights: .*model-2\.safetensors is missing; .* names it"):
        run(tmp_path, "check", base="maker/torn")
    assert fetched(web, start) <= SMALL


@pytest.mark.parametrize(
    ("name", "value", "refusal"),
    [
        ("host_memory.memory_available_bytes", 1 << 20, r"memory for training: 1\.0 MiB, needed 1\.0 GiB"),
        ("disk.free_disk_bytes", 1 << 20, r"disk: 1\.0 MiB, needed"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_weights_come(
    name: str, value: int, refusal: str, web: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"appliance.machine.{name}", lambda *_: value)
    monkeypatch.setattr("appliance.hub.download._refuse_full_disk", lambda *_: None)  # not the download's own look
    start = len(web.log())
    with pytest.raises(EnvironmentUnavailable, match=refusal):
        run(tmp_path, "publish")
    assert fetched(web, start) <= SMALL
    assert not list((tmp_path / "hf").rglob("model.safetensors"))


@pytest.mark.usefixtures("web")
def test_the_bases_own_disk_is_asked_where_it_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "is_same_volume", lambda *_: False)
    path = run(tmp_path, "check")
    table = {line["what"]: line for line in files.read_json(path / "check" / "table.json")}
    assert table["disk for the base"]["verdict"] == "ok"
    assert "download" not in table["disk"]["needed"]
    monkeypatch.setattr(disk_needs, "MARGIN", 1e12)
    with pytest.raises(EnvironmentUnavailable, match="disk for the base: ") as caught:
        run(tmp_path, "check")
    assert "set HF_HOME to a folder on another disk" in caught.value.hint


@pytest.mark.usefixtures("web")
def test_one_disk_for_both_holds_the_download_as_well(tmp_path: Path) -> None:
    base = base_model_find.base_of(BASE, None, tmp_path / "cache")
    demand = disk_needs.of_run(base, TuningSection(), TrainSection(), has_hard_links=True)
    assert disk.is_same_volume(base.dir, tmp_path / "runs" / "not" / "there")
    found = {f["what"]: f for f in files.read_json(run(tmp_path, "check") / "check" / "table.json")}["disk"]
    with_download = demand.total + int(sum(base.coming.values()) * disk_needs.MARGIN)
    assert found["needed"].startswith(disk.human(with_download))
