"""Where a base model comes from, as far as that needs no network: folders, the demo, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from appliance.base_model import demo
from appliance.base_model import find as base_model_find
from appliance.base_model.base import Base
from appliance.base_model.find import resolve
from appliance.errors import ApplianceError, EnvironmentUnavailable, HubError, RecipeError
from appliance.hub import download
from appliance.hub import errors as hub_errors
from appliance.hub import token as hub_token
from appliance.hub.cache import Expected, Snapshot, Source
from appliance.hub.errors import Kind, Retry
from appliance.process import child, known_secrets

CONFIG = {"model_type": "llama", "max_position_embeddings": 512, "dtype": "bfloat16"}


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


# --- a download

GOOD = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
WEIGHTS = {"model.safetensors": "weights", "pytorch_model.bin": "pickle", "tokenizer.json": "{}"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


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


# --- the token


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        (
            {"HF_TOKEN": " hf_direct\n", "HF_TOKEN_FILE": "FOLDER/token", "HUGGING_FACE_HUB_TOKEN": "hf_old"},
            "hf_direct",
        ),
        ({"HF_TOKEN": "", "HF_TOKEN_FILE": "FOLDER/token", "HUGGING_FACE_HUB_TOKEN": "hf_old"}, "hf_from_file"),
        ({"HF_TOKEN_FILE": os.devnull, "HUGGING_FACE_HUB_TOKEN": "hf_old"}, "hf_old"),
        ({"HF_TOKEN_FILE": os.devnull}, None),  # what compose mounts if no file is named
        ({}, None),
    ],
)
def test_where_the_token_comes_from(
    environ: dict[str, str], token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run, doctor and the search for leaks agree, and no child process inherits it."""
    (tmp_path / "token").write_text(" hf_from_file\n", encoding="utf-8")
    for name, value in environ.items():
        monkeypatch.setenv(name, value.replace("FOLDER", str(tmp_path)))
    assert hub_token.token() == token
    assert hub_token.token_finding(os.environ)[1] == (token or "")
    values = {value.strip() for value in environ.values() if value.strip().startswith("hf_")}
    assert {*values, *filter(None, [token])} <= set(hub_token.every_token())
    assert not set(known_secrets.HUB_TOKEN_VARIABLES) & child.child_environment().keys()
    assert set(environ) <= set(known_secrets.HUB_TOKEN_VARIABLES)


def test_the_token_of_a_login_is_the_last_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("hf_saved", encoding="utf-8")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert (hub_token.token(), hub_token.token_finding(os.environ)[1]) == ("hf_saved", "hf_saved")
    monkeypatch.setenv("HF_TOKEN", "hf_direct")
    assert hub_token.token() == "hf_direct"
    assert {"hf_direct", "hf_saved"} <= set(hub_token.every_token())


def test_a_token_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_FILE", str(tmp_path / "hf_secret"))
    with pytest.raises(EnvironmentUnavailable, match="HF_TOKEN_FILE cannot be read: No such file") as caught:
        hub_token.token()
    assert "hf_secret" not in str(caught.value) + caught.value.hint  # people put the token itself there


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# my token\nhf_secret", "has 2 lines"),
        ("hf_secret\r\nhf_secret", "has 2 lines"),
        ("\u201chf_secret\u201d", "is in curly quotes"),
        ("\u2018hf_secret\u2019", "is in curly quotes"),
        ('"hf_secret"', "is in quotes"),
        ("hf_secret # mine", "contains a space"),
        ("hf_secret\u200b", "contains characters that are not visible ASCII"),
        ("hf_secret\x1b[0m", "contains characters that are not visible ASCII"),
    ],
)
@pytest.mark.parametrize("where", ["HF_TOKEN", "HF_TOKEN_FILE", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"])
def test_a_token_that_is_not_one_line_of_visible_ascii_is_refused_without_its_text(
    text: str, fault: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8", newline="")
    monkeypatch.setenv(where, str(tmp_path / "token") if where in ("HF_TOKEN_FILE", "HF_TOKEN_PATH") else text)
    with pytest.raises(EnvironmentUnavailable) as caught:
        hub_token.token()
    said = str(caught.value) + caught.value.hint
    assert fault in said
    assert "secret" not in said
    assert any("hf_secret" in token for token in hub_token.every_token())  # so that it is masked all the same


# --- what a failure is called


def _answer(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError, token: str | None = "hf_x") -> HfHubHTTPError:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = httpx.Request("GET", "https://hub/api", headers=headers)
    return kind("x", response=httpx.Response(status, request=request))


def _wrapped(error: Exception) -> Exception:
    """As the library does when a file is not in the cache."""
    outer = LocalEntryNotFoundError("an error happened while trying to locate the file on the Hub")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "retry"),
    [
        (OfflineModeIsEnabled("offline"), Kind.OFFLINE, Retry.NEVER),
        (httpx.ReadTimeout("slow"), Kind.TIMEOUT, Retry.SAME),
        (httpx.ProxyError("503 Service Unavailable"), Kind.CONNECTION, Retry.SAME),
        (ConnectionResetError("reset"), Kind.CONNECTION, Retry.SAME),
        (httpx.UnsupportedProtocol("no scheme"), Kind.UNSENDABLE, Retry.NEVER),
        (_answer(401), Kind.TOKEN, Retry.NEVER),
        (_answer(401, RepositoryNotFoundError), Kind.TOKEN, Retry.NEVER),  # the library's guess
        (_answer(401, RepositoryNotFoundError, token=None), Kind.NO_REPOSITORY, Retry.NEVER),
        (_answer(403), Kind.FORBIDDEN, Retry.NEVER),
        (_answer(403, GatedRepoError), Kind.GATED, Retry.NEVER),
        (_answer(404), Kind.NO_REPOSITORY, Retry.NEVER),
        (_answer(404, RevisionNotFoundError), Kind.NO_REVISION, Retry.NEVER),
        (_answer(404, RemoteEntryNotFoundError), Kind.NO_FILE, Retry.NEVER),
        (_answer(412), Kind.CONFLICT, Retry.REREAD),
        (_answer(413), Kind.NO_ROOM, Retry.NEVER),
        (_answer(418), Kind.STATUS, Retry.NEVER),
        (_answer(429), Kind.TOO_MANY, Retry.SAME),
        (_answer(501), Kind.SERVER, Retry.NEVER),
        (_answer(503), Kind.SERVER, Retry.SAME),
        (_wrapped(_answer(503)), Kind.SERVER, Retry.SAME),
        (RuntimeError("HTTP status client error (403 Forbidden) for url"), Kind.FORBIDDEN, Retry.WITHOUT_XET),
        (ConnectionError("HTTP status client error (401 Unauthorized)"), Kind.TOKEN, Retry.WITHOUT_XET),
        (RuntimeError("channel closed"), Kind.TRANSFER, Retry.WITHOUT_XET),
        (OSError("Consistency check failed"), Kind.TRANSFER, Retry.WITHOUT_XET),
        (hub_errors.Unreachable("gave up"), Kind.GAVE_UP, Retry.NEVER),
        (ValueError("odd"), Kind.OTHER, Retry.NEVER),
    ],
)
def test_one_table_names_every_failure(error: Exception, kind: Kind, retry: Retry) -> None:
    failure = hub_errors.failure_of(error)
    assert (failure.kind, failure.retry) == (kind, retry)
    source = Source("a/Good", "model", "v1", None, "check the name")
    fetching = hub_errors.fetch_error(error, source)
    assert "{" not in failure.message + str(fetching)
    assert failure.message in str(hub_errors.hub_error(error, again="go on"))
    assert str(fetching).startswith("the base model a/Good cannot be fetched: ")
    assert fetching.hint
    is_outage = retry is Retry.SAME or kind in (Kind.OFFLINE, Kind.GAVE_UP)
    assert isinstance(hub_errors.hub_error(error, again="go on"), hub_errors.Unreachable) == is_outage


def test_every_kind_has_its_row() -> None:
    assert hub_errors._TABLE.keys() == set(Kind) - {Kind.GAVE_UP}


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


def test_every_refusal_has_its_exit_code() -> None:
    codes: dict[type[ApplianceError], int] = {RecipeError: 2, EnvironmentUnavailable: 4, HubError: 5}
    assert {kind: kind("").exit_code for kind in codes} == codes


def test_a_hub_that_cannot_be_reached_is_exit_5(tmp_path: Path) -> None:
    """The real client against a closed loopback port: its errors are httpx's, not OSErrors."""
    code = (
        "from pathlib import Path; from appliance.base_model import find as base_model_find; from appliance.errors "
        "import HubError\n"
        "try: base_model_find.resolve('someone/base', None, Path('.'))\n"
        "except HubError as error: print(error); raise SystemExit(error.exit_code)"
    )
    environment = {"PATH": os.environ["PATH"], "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "")
    assert "someone/base cannot be fetched" in done.stdout
