"""Run directories and CSVs in a storage: what a node fetches, and what an upload leaves that was cut off anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest

from appliance.errors import EnvironmentUnavailable, RecipeError, RunDirError
from appliance.process import files
from appliance.rundir.directory import RunDir
from appliance.sweeps.remote_folder import RemoteFolder
from appliance.sweeps.storage import RECORD, Storage

BEFORE = {"train/metrics.jsonl": "1\n", "train/checkpoints/checkpoint-3/a.pt": "three", "recipe.yaml": "name: 가게"}
AFTER = {
    "recipe.yaml": "name: 가게",
    "train/metrics.jsonl": "1\n2\n",
    "train/adapter/adapter_model.safetensors": "weights",
    "merge/model/model.safetensors": "merged",
    "publish/release/model.safetensors": "merged",
}


def write(run_path: Path, texts: dict[str, str], *done: str) -> Path:
    """A run directory with these files, and the stages `done` as the ledger leaves them."""
    run_dir = RunDir(run_path)
    run_dir.create()
    for name, text in texts.items():
        (run_path / name).parent.mkdir(parents=True, exist_ok=True)
        (run_path / name).write_text(text, encoding="utf-8")
    for stage in done:
        kept = [path.name for path in run_dir.stage_dir(stage).iterdir() if path.name != "stage.json"]
        run_dir.begin(stage, {}, keep=kept)
        run_dir.finish(stage, {}, "done", unlisted=("checkpoints",))
    return run_path


def contents(run_path: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run_path).as_posix(): path.read_bytes()
        for path in run_path.rglob("*")
        if path.is_file() and path.name not in (".lock", RECORD)
    }


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/storage")


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_one_node_stores_another_fetches(kind: str, tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/storage" if kind == "file" else f"memory://{tmp_path.name}/fleet")
    run = write(tmp_path / "a" / "shop", AFTER, "train", "merge", "publish")
    (run / ".half.1.tmp").write_text("half", encoding="utf-8")
    (run / "link").symlink_to("/etc/passwd")
    storage.fetch("shop", run)  # nothing is stored yet
    storage.store("shop", run)
    other = tmp_path / "b" / "shop"
    storage.fetch("shop", other)
    for name in (".half.1.tmp", "link"):
        (run / name).unlink()
    assert contents(other) == contents(run)
    assert (other.stat().st_mode & 0o777, (other / "recipe.yaml").stat().st_mode & 0o777) == (0o700, 0o600)
    assert (other / "merge/model/model.safetensors").samefile(other / "publish/release/model.safetensors")


def test_only_what_differs_is_uploaded_and_fetched(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(tmp_path / "a", AFTER, "train", "merge", "publish")
    moved: list[str] = []
    for name in ("put", "get", "copy"):
        real = getattr(RemoteFolder, name)

        def counted(self: RemoteFolder, *args: object, real: Callable[..., object] = real, name: str = name) -> object:
            moved.append(f"{name} {next(one for one in args if isinstance(one, str))}")
            return real(self, *args)

        monkeypatch.setattr(RemoteFolder, name, counted)
    storage.store("shop", run)
    assert "copy runs/shop/merge/model/model.safetensors" in moved  # the release's: not a second upload
    storage.fetch("shop", tmp_path / "b")
    assert "get runs/shop/publish/release/model.safetensors" not in moved
    moved.clear()
    (tmp_path / "b" / "report.html").write_text("page", encoding="utf-8")
    storage.store("shop", tmp_path / "b")
    storage.store("shop", tmp_path / "b")
    storage.fetch("shop", tmp_path / "b")
    storage.fetch("shop", run)
    assert moved == ["put runs/shop/report.html", "get runs/shop/report.html"]


@dataclass(frozen=True)
class CutOff(RemoteFolder):
    """Its process is killed at one of its changes, in the middle of an upload."""

    at: int = -1
    seen: list[str] = field(default_factory=list)

    def _count(self, what: str, half: Callable[[], None] = lambda: None) -> None:
        self.seen.append(what)
        if len(self.seen) == self.at:
            half()
            raise KeyboardInterrupt

    def write(self, name: str, content: bytes) -> None:
        self._count(f"write {name}")
        super().write(name, content)

    def remove(self, name: str) -> None:
        self._count(f"remove {name}")
        super().remove(name)

    def copy(self, name: str, to: str) -> None:
        self._count(f"copy {to}")
        super().copy(name, to)

    def put(self, path: Path, name: str) -> None:
        def half() -> None:
            place = Path(self._path(name))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes()[:-1])

        self._count(f"put {name}", half)
        super().put(path, name)


def test_an_upload_cut_off_anywhere_equals_a_killed_run(tmp_path: Path) -> None:
    """And so does a second one, of the node that went on after the first."""
    at, seen = 0, ["?"]
    while at < len(seen):
        at += 1
        scene = tmp_path / str(at)
        storage = Storage(f"file://{scene}/storage")
        run = write(scene / "a", BEFORE)
        storage.store("shop", run)
        files.remove(run / "train" / "checkpoints")
        write(run, AFTER, "train", "merge", "publish")
        seen = cut_off(storage, run, at)
        other = scene / "b"
        storage.fetch("shop", other)
        found = contents(other)
        refuse_half_done(other, [contents(run), encoded(BEFORE)])
        assert found["recipe.yaml"] == encoded(AFTER)["recipe.yaml"]  # neither of the two changes it
        files.remove(other / "train" / "checkpoints")
        write(other, {"train/metrics.jsonl": "1\n2\n3\n", "train/adapter/adapter_model.safetensors": "longer"}, "train")
        whole = contents(other)
        cut_off(storage, other, max(at - 2, 1))
        third = scene / "c"
        storage.fetch("shop", third)
        refuse_half_done(third, [contents(run), encoded(BEFORE), contents(other)])
        storage.fetch("shop", other)
        assert contents(other) == whole  # its own files are the newer ones
        storage.store("shop", other)
        files.remove(third)
        storage.fetch("shop", third)
        assert contents(third) == whole
    assert len(seen) > 8
    assert [name.split("/")[-1] for name in seen[-3:]] == ["stage.json", "a.pt", RECORD]


def cut_off(storage: Storage, run_path: Path, at: int) -> list[str]:
    folder = CutOff(storage.url, at)
    cut = Storage(storage.url)
    vars(cut)["folder"] = folder
    try:
        cut.store("shop", run_path)
    except KeyboardInterrupt:
        return [*folder.seen, "?"]  # there is more to come
    return folder.seen


def encoded(texts: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in texts.items()}


def refuse_half_done(run_path: Path, states: list[dict[str, bytes]]) -> None:
    """What the ledger calls done is whole; every other file is one that some state of the run had."""
    for stage in ("train", "merge", "publish"):
        record = RunDir(run_path).record(stage)
        if record:
            assert RunDir(run_path).faults(stage, record) == []
    for name, content in contents(run_path).items():
        assert content in [state.get(name) for state in states], name


def test_a_fetch_that_was_cut_off_is_begun_again(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(tmp_path / "a", AFTER, "train")
    storage.store("shop", run)
    real, calls = RemoteFolder.get, []

    def third_fails(self: RemoteFolder, name: str, path: Path, allowed: set[str]) -> bool:
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, name, path, allowed)

    monkeypatch.setattr(RemoteFolder, "get", third_fails)
    with pytest.raises(KeyboardInterrupt):
        storage.fetch("shop", tmp_path / "b")
    with pytest.raises(RunDirError, match="was stored by another node"):  # half a run must not replace the whole
        storage.store("shop", tmp_path / "b")
    storage.fetch("shop", tmp_path / "b")
    assert contents(tmp_path / "b") == contents(run)
    assert calls.count(calls[0]) == 1


def test_results_come_without_weights_and_the_rest_follows(storage: Storage, tmp_path: Path) -> None:
    run = write(tmp_path / "a", {**BEFORE, **AFTER}, "train", "merge", "publish")
    storage.store("shop", run)
    storage.fetch_results("shop", tmp_path / "b")
    assert contents(run).keys() - contents(tmp_path / "b").keys() == {
        "train/checkpoints/checkpoint-3/a.pt",
        "train/adapter/adapter_model.safetensors",
        "merge/model/model.safetensors",
        "publish/release/model.safetensors",
    }
    with pytest.raises(RunDirError, match="was stored by another node"):
        storage.store("shop", tmp_path / "b")
    storage.fetch("shop", tmp_path / "b")
    assert contents(tmp_path / "b") == contents(run)
    storage.fetch_results("shop", run)
    assert "merge/model/model.safetensors" in contents(run)


def test_another_run_of_the_name_is_not_overwritten(storage: Storage, tmp_path: Path) -> None:
    storage.store("shop", write(tmp_path / "a", AFTER, "train"))
    other = write(tmp_path / "b", {"recipe.yaml": "name: other"})
    for fetch in (storage.fetch, storage.fetch_results):
        with pytest.raises(RunDirError, match="are different runs of one name"):
            fetch("shop", other)
    with pytest.raises(RunDirError, match="was stored by another node") as caught:
        storage.store("shop", other)
    assert "the stored one counts" in caught.value.hint
    assert contents(other) == {"recipe.yaml": b"name: other"}


def test_of_two_nodes_at_one_run_the_first_to_store_it_counts(storage: Storage, tmp_path: Path) -> None:
    storage.store("shop", write(tmp_path / "a", BEFORE))
    for node in ("b", "c"):
        storage.fetch("shop", tmp_path / node)
        write(tmp_path / node, {"train/metrics.jsonl": f"{node}\n"})
    storage.store("shop", tmp_path / "b")
    with pytest.raises(RunDirError, match="was stored by another node"):
        storage.store("shop", tmp_path / "c")
    storage.fetch("shop", tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "b")


def test_a_run_at_work_is_neither_stored_nor_replaced(storage: Storage, tmp_path: Path) -> None:
    run = write(tmp_path / "a", BEFORE)
    storage.store("shop", run)
    storage.fetch("shop", tmp_path / "b")
    write(tmp_path / "b", AFTER)
    storage.store("shop", tmp_path / "b")
    with RunDir(run).lock():
        for act in (storage.store, storage.fetch):
            with pytest.raises(RunDirError, match="is in use by process"):
                act("shop", run)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "recipe.yaml").write_text("other"), r"recipe\.yaml is gone or not as it was stored"),
        (lambda run: (run / "recipe.yaml").unlink(), r"recipe\.yaml is gone or not as it was stored"),
        (lambda run: (run / RECORD).write_text("{"), rf"{RECORD} is damaged"),
        (lambda run: (run / RECORD).write_text('{"other": 1}'), rf"{RECORD} is damaged"),
        (
            lambda run: (run / RECORD).write_text(json.dumps({"state": "1", "files": {"../x": {"sha256": "0"}}})),
            "outside of the run directory",
        ),
    ],
)
def test_damage_in_the_storage_is_named(
    damage: Callable[[Path], object], words: str, storage: Storage, tmp_path: Path
) -> None:
    storage.store("shop", write(tmp_path / "a", AFTER))
    damage(tmp_path / "storage" / "runs" / "shop")
    with pytest.raises(RunDirError, match=words):
        storage.fetch("shop", tmp_path / "b")


def test_a_csv_goes_through_the_storage_by_its_hash(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "가게 1.csv"
    path.write_text("instruction,output\n", encoding="utf-8")
    sha256 = storage.put_csv(path)
    stored = tmp_path / "storage" / "csv" / sha256 / path.name
    stored.write_text("cut", encoding="utf-8")
    with pytest.raises(EnvironmentUnavailable, match="is gone or not as it was stored"):
        storage.get_csv(sha256, path.name, tmp_path / "node")
    assert storage.put_csv(path) == sha256  # the same command stores it again
    got = storage.get_csv(sha256, path.name, tmp_path / "node")
    assert got.read_bytes() == path.read_bytes()
    assert got.name == path.name
    stored.unlink()
    assert storage.get_csv(sha256, path.name, tmp_path / "node") == got


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("s3://user:secret@host/bucket", RecipeError, "has a password in it"),
        ("nonsense://bucket", RecipeError, "nonsense"),
        ("file:///proc/1/nothing", EnvironmentUnavailable, r"storage file:///proc/1/nothing/tried/"),
    ],
)
def test_an_unusable_url_is_refused_before_any_work(url: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        RemoteFolder(url).refuse_unusable()
    assert "secret" not in str(caught.value)


def test_a_storage_whose_client_is_not_installed_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fsspec.core, "url_to_fs", lambda _: (_ for _ in ()).throw(ImportError("Please install s3fs to access S3"))
    )
    with pytest.raises(EnvironmentUnavailable, match="install s3fs") as caught:
        RemoteFolder("s3://bucket").refuse_unusable()
    assert "every node" in caught.value.hint


def test_a_usable_url_is_left_as_it_was(storage: Storage, tmp_path: Path) -> None:
    storage.folder.refuse_unusable()
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []
