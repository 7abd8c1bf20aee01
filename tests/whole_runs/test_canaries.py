"""Secrets are planted wherever one may be, and found nowhere: whole runs, every way to end, every way to say something.

Searched are standard output and error, every file that a command leaves, what the Hub received, and the arguments and
environments of the processes that are started.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, HubError, Interrupted
from appliance.hub import client, download, upload
from appliance.hub import token as hub_token
from appliance.hub.client import Limits
from appliance.hub.repository import MARKER
from appliance.pipeline import stages
from appliance.process import redact, signals
from appliance.recipe import resolve
from appliance.rundir.directory import STAGES
from tests.conftest import write_qa
from tests.datasets_src.test_endpoint import Reply, Server
from tests.helpers import canary, loopback_hub, warm
from tests.helpers.loopback_hub import LoopbackHub

pytestmark = pytest.mark.slow

TOKEN = "hf_" + "QzXwVbNmKjHgFdSaPoIuYtReWqLk753146"
KEY = "sk-proj-4hT9bXq2LmZr8VwC6nPd"
PASSWORD = "pR0xy/pa+ss w0rd"  # of a proxy; percent-encoded in its address
NETRC = "n3trc-Kq8vTzYh-0f-th3-hub"
STORED = "hf_" + "LoGiNtOkEnOfAnOtHeRaCcOuNt987654"
SECRETS = {"token": TOKEN, "key": KEY, "password": PASSWORD, "netrc": NETRC, "stored": STORED}
NAMES = {"user": "gildongcanary", "host": "seoulcanary"}
ROW = "행카나리 아무도 모르는 답"  # in every answer of the CSV
RECIPE = """name: shop
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: {csv}, test_fraction: 0.2}}
tuning: {{r: 2, alpha: 4}}
train: {{max_steps: 2, micro_batch_size: 4, gradient_accumulation_steps: 1, optimizer: adamw_torch, eval_every: 1}}
evaluate: {{max_new_tokens: 4}}
publish: {{min_stop_rate: 0, require_improvement: false, repo_id: alice/shop, merged: false}}
"""


MIRROR = {"HF_ENDPOINT": f"http://u:{KEY}@127.0.0.1:9"}
PROXY_URL = f"http://me:{canary.quote(PASSWORD, safe='')}@127.0.0.1:9"
PROXY = {"HTTP_PROXY": PROXY_URL, "http_proxy": PROXY_URL, "NO_PROXY": "", "no_proxy": ""}
# A sitecustomize.py: the child that talks to the Hub lets out what it sends there, and then fails.
LEAKY = """
import sys
if sys.orig_argv[1:3] == ["-m", "appliance.hub.{child}_child"]:
    import httpx, logging, os, signal
    send = httpx.Client.send
    def leak(client, request, **how):
        text = request.headers.get("authorization")
        if not text:
            return send(client, request, **how)
        print("leaked", text)
        sys.stderr.write("leaked " + text + " " + text[9:] + chr(10))
        sys.stderr.flush()
        logging.getLogger("some.library").error("leaked %s", request.headers.raw)
        if {how!r} == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {how}("leaked " + text)
    httpx.Client.send = leak
"""


@dataclass
class Shop:
    """`call` types a command in `folder`, where everything that it leaves is searched."""

    folder: Path
    hub: LoopbackHub
    environ: dict[str, str]
    processes: Path  # what spied() writes
    planted: list[Path] = field(default_factory=list)
    searched: set[int] = field(default_factory=set)  # files that held no secret when they were searched

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "shop"

    def call(self, line: str, **more: str) -> subprocess.CompletedProcess[str]:
        return warm.typed(line, cwd=self.folder, env=self.environ | more)

    def leaks(self, *outputs: str) -> dict[str, list[str]]:
        """Secret -> where it was found."""
        texts = [(f"output {i}", text.encode()) for i, text in enumerate(outputs)]
        for folder in (self.folder, self.hub.state):
            texts += [text for text in canary.files_in(folder, *self.planted) if hash(text) not in self.searched]
        found = {name: places for name, secret in SECRETS.items() if (places := canary.found(texts, secret))}
        self.searched |= set() if found else {hash(text) for text in texts}
        return found


def spied(path: Path) -> Callable[..., None]:
    """Popen.__init__ that writes down the arguments and variables of what it starts, but for a Hub of the tests."""
    init = subprocess.Popen.__init__

    def spy(self: Any, args: Any, *positional: Any, env: Mapping[str, str] | None = None, **options: Any) -> None:
        record = {"args": [str(arg) for arg in args], "env": dict(os.environ if env is None else env)}
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
        init(self, args, *positional, env=env, **options)

    return spy


@pytest.fixture(scope="module")
def shop(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Every secret is planted."""
    folder, home = tmp_path_factory.mktemp("canaries"), tmp_path_factory.mktemp("home")
    csv = write_qa(folder / "train.csv", [(f"질문 {i}?", f"{ROW} {i}.") for i in range(20)])
    (folder / "shop.yaml").write_text(RECIPE.format(base=base_dir, csv=csv), encoding="utf-8")
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {NETRC}\n", encoding="utf-8")
    (home / "hf").mkdir()
    (home / "hf" / "token").write_text(STORED, encoding="utf-8")
    with loopback_hub.started(tmp_path_factory.mktemp("hub")) as hub, pytest.MonkeyPatch.context() as patch:
        hub.add_user("alice", TOKEN)
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "OPENAI"))}
        environ = {
            **{name: value for name, value in kept.items() if not name.upper().endswith("_PROXY")},
            **hub.environ,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home / "hf"),
            "HOME": str(home),
            "OPENAI_API_KEY": KEY,
            "HTTPS_PROXY": PROXY_URL,
            "APPLIANCE_CACHE_DIR": str(folder / "cache"),
            "APPLIANCE_RUNS_DIR": "runs",
            "LOGNAME": NAMES["user"],
            "TMPDIR": str(folder),
        }
        del environ["HF_HUB_DISABLE_XET"]
        patch.setattr("socket.gethostname", lambda: NAMES["host"])
        redact.names_here.cache_clear()
        patch.setattr(subprocess.Popen, "__init__", spied(home / "processes.jsonl"))
        yield Shop(folder, hub, environ, home / "processes.jsonl")
    redact.names_here.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""
    limits = Limits(tries=2, pace=0.01)
    monkeypatch.setattr(download.obtain, "__defaults__", (limits,))
    monkeypatch.setattr(download, "_ASKING", limits)
    monkeypatch.setattr(client, "Limits", lambda **_: limits)
    monkeypatch.setattr(upload.publish, "__kwdefaults__", upload.publish.__kwdefaults__ | {"limits": limits})


@pytest.fixture(scope="module")
def finished(shop: Shop) -> subprocess.CompletedProcess[str]:
    """A whole run up to its upload, under a umask that lets everybody read and write."""
    before = os.umask(0)
    try:
        return shop.call("appliance run shop.yaml")
    finally:
        os.umask(before)


def test_a_whole_run_leaks_nothing(shop: Shop, finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stderr
    assert [stage for stage in STAGES if not (shop.run / stage / "stage.json").is_file()] == []
    assert list(shop.run.glob("train/checkpoints/*/optimizer.*"))  # where the Trainer pickles its arguments too
    assert shop.hub.repo("alice/shop")
    assert shop.leaks(finished.stdout, finished.stderr) == {}


def test_no_process_is_given_a_secret(shop: Shop, finished: subprocess.CompletedProcess[str]) -> None:
    """Neither in its arguments nor, if it is one of ours, in its environment; an upload may need the proxy."""
    assert finished.returncode == 0
    lines = shop.processes.read_text(encoding="utf-8").splitlines()
    for process in map(json.loads, lines):
        ours = "-m" in process["args"]
        shown = [("arguments", json.dumps(process["args"]).encode())]
        shown += [(name, value.encode()) for name, value in process["env"].items() if ours]
        for name, secret in SECRETS.items():
            allowed = ["HTTPS_PROXY"] if name == "password" and process["args"][-1].startswith("appliance.hub.") else []
            assert canary.found(shown, secret) == allowed, process["args"]
    assert any("appliance.hub.upload_child" in line for line in lines)


def test_what_leaves_names_nobody_and_shows_no_row(shop: Shop, finished: subprocess.CompletedProcess[str]) -> None:
    """Cards, configs and logs; the other files of the run, such as predictions.csv, are there for its rows."""
    assert finished.returncode == 0
    leaving = list(canary.files_in(shop.hub.state))
    leaving += [(path.name, path.read_bytes()) for path in shop.run.rglob("*.log")]
    assert {"appliance.log", "requests.jsonl"} <= {Path(name).name for name, _ in leaving}
    private = [ROW, *NAMES.values(), shop.environ["HOME"], str(shop.folder)]
    found = {
        (name, text)
        for name, content in leaving
        for text in private
        if text.encode() in content and not (name.endswith(".log") and text == str(shop.folder))  # its own paths
    }
    assert found == set()
    repo = shop.hub.repo("alice/shop")
    assert repo
    published = {name.rpartition("/")[2] for name in repo["commits"][-1]["files"]}
    assert published <= {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "prompt.json", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json", ".gitattributes", MARKER),
    }


def test_its_files_are_for_their_user_whatever_the_umask(
    shop: Shop, finished: subprocess.CompletedProcess[str]
) -> None:
    assert finished.returncode == 0
    paths = [shop.run, *shop.run.rglob("*")]
    assert [str(path) for path in paths if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("umask", [0, 0o027, 0o077, 0o777], ids=oct)
def test_every_umask_leaves_a_run_that_its_user_can_read(umask: int, shop: Shop) -> None:
    before = os.umask(umask)
    try:
        done = shop.call(f"appliance check shop.yaml --set name=umask-{umask}")
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    run = shop.run.with_name(f"umask-{umask}")
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (run, *run.rglob("*"))}
    assert modes == {(True, 0o700), (False, 0o600)}


# --- every way to end


def failing(error: BaseException) -> Callable[..., str]:
    """A stage that fails with a message that holds every secret. Those that stand for all let them out in every way."""

    def stage(*_: object, **__: object) -> str:
        # What it never reads it cannot let out: the password of .netrc, and the login while HF_TOKEN is set.
        read = [TOKEN, KEY, PASSWORD] if os.environ["HF_TOKEN"] else [str(hub_token.token())]
        texts = [canary.in_all_spellings(secret) for secret in read]
        for secret in read if isinstance(error, LEAKING) else ():
            canary.leak(secret)
        if isinstance(error, ApplianceError):
            raise type(error)(" ".join(texts), hint=texts[0])
        if isinstance(error, Interrupted):
            os.kill(os.getpid(), error.exit_code - 128)
            signal.pause()
        if isinstance(error, OSError):
            raise OSError(error.errno, os.strerror(error.errno or 0), f"/{SECRETS['token']}/{SECRETS['key']}")
        raise type(error)(" ".join(texts)) from ValueError(*texts)

    return stage


LEAKING = (RuntimeError, HubError, Interrupted)
ENDS: list[tuple[BaseException, int]] = [
    (RuntimeError(), 1),
    *((kind(""), kind.exit_code) for kind in ApplianceError.__subclasses__()),
    (OSError(errno.ENOSPC, ""), 4),
    *((Interrupted(number, ""), 128 + number) for number in signals.SIGNALS),
]


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    ("error", "code", "token"),
    [*((error, code, TOKEN) for error, code in ENDS), (HubError(""), 5, "")],
    ids=[*(f"{type(e).__name__}-{code}" for e, code in ENDS), "login"],
)
def test_nothing_leaks_however_a_command_ends(
    error: BaseException, code: int, token: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "publish", failing(error))
    done = shop.call("appliance publish runs/shop --redo publish --set publish.repo_id=null", HF_TOKEN=token)
    assert done.returncode == code, done.stderr[-2000:]
    log = (shop.run / "appliance.log").read_text(encoding="utf-8")
    if isinstance(error, LEAKING):  # it was all written
        assert min(done.stderr.count("leaked"), log.count("leaked")) > 5
    elif isinstance(error, ApplianceError):
        assert "leaked" in done.stderr
    assert shop.leaks(done.stdout, done.stderr) == {}
    assert not any(name in log for name in NAMES.values())


def test_a_bug_outside_of_a_run_leaks_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback goes to stderr: there is no log."""
    monkeypatch.setattr(resolve, "load", failing(RuntimeError()))
    done = shop.call("appliance run shop.yaml")
    assert (done.returncode, "Traceback" in done.stderr) == (1, True)
    assert "leaked" in done.stdout
    assert shop.leaks(done.stdout, done.stderr) == {}


@pytest.mark.parametrize(
    ("line", "more", "code", "message"),
    [
        (f"appliance run shop.yaml --set publish.token={TOKEN}", {}, 2, "publish.token"),
        (f"appliance run {TOKEN}", {}, 2, "…"),
        (f"appliance publish runs/shop --repo-id {TOKEN}/a/b", {}, 2, "…"),
        (f"appliance check runs/{TOKEN}", {}, 2, "…"),
        (f"appliance check {KEY}.csv", {}, 3, "…"),
        ("appliance publish runs/shop --repo-id alice/other", {"HF_TOKEN": f"# mine\n{TOKEN}"}, 4, "has 2 lines"),
        ("appliance publish runs/shop --repo-id alice/other", {"HF_TOKEN_FILE": TOKEN, "HF_TOKEN": ""}, 4, "cannot"),
        ("appliance doctor", MIRROR, 0, "HF_ENDPOINT holds a user name or password"),
        ("appliance publish runs/shop --repo-id alice/other", MIRROR, 5, "HF_ENDPOINT holds a user name or password"),
        ("appliance check shop.yaml --set model.id=a/b --set name=b", MIRROR, 5, "HF_ENDPOINT holds a user name"),
        ("appliance publish runs/shop --repo-id alice/other", PROXY, 5, "Connection refused"),
        ("appliance check shop.yaml --set model.id=a/b --set name=b", PROXY, 5, "Connection refused"),
        ("appliance status", {}, 0, "shop"),
        ("appliance inspect runs/shop", {}, 0, ""),
        ("appliance recipe show runs/shop", {}, 0, ""),
        (f"appliance dataset paraphrase train.csv out.csv --model m --base-url http://me:{KEY}@h/v1", {}, 4, "user"),
        (f"appliance dataset paraphrase train.csv out.csv --model m --base-url http://h/v1?k={KEY}", {}, 4, "behind"),
    ],
    ids=range(17),
)
@pytest.mark.usefixtures("finished", "quick")
def test_what_a_user_types_shows_no_secret(
    line: str, more: dict[str, str], code: int, message: str, shop: Shop
) -> None:
    done = shop.call(line, **more)
    assert done.returncode == code, done.stderr[-2000:]
    assert message in done.stdout + done.stderr
    assert shop.leaks(done.stdout, done.stderr) == {}


@pytest.mark.usefixtures("finished")
def test_a_hub_that_repeats_the_token_in_its_answer(shop: Shop) -> None:
    said = f"bad header: Bearer {TOKEN}, Basic {canary.SPELLED['base64 behind ' + repr('u:')](TOKEN)}"
    shop.hub.fault("status", match="/api/", status=403, message=said, times=0)
    try:
        done = shop.call("appliance publish runs/shop --repo-id alice/other")
    finally:
        shop.hub.clear_faults()
    assert (done.returncode, "bad header" in done.stderr) == (5, True), done.stderr
    assert shop.leaks(done.stdout, done.stderr) == {}


@pytest.mark.parametrize("how", ["RuntimeError", "SystemError", "killed"])
@pytest.mark.parametrize("child", ["download", "upload"])
@pytest.mark.usefixtures("finished", "quick")
def test_a_child_that_fails_at_the_hub_leaks_nothing(
    child: str, how: str, shop: Shop, base_dir: Path, tmp_path: Path
) -> None:
    """By an error that it reports, by one that it does not expect, and without a word."""
    (tmp_path / "sitecustomize.py").write_text(LEAKY.format(child=child, how=how), encoding="utf-8")
    if shop.hub.repo("alice/base") is None:
        shop.hub.add_repo(
            "alice/base", files={path.name: path.read_bytes() for path in filter(Path.is_file, base_dir.iterdir())}
        )
    lines = {
        "download": f"appliance check shop.yaml --set model.id=alice/base --set name={how}",
        "upload": "appliance publish runs/shop --repo-id alice/other",
    }
    done = shop.call(lines[child], PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert (done.returncode, "Error: " in done.stderr) == (5, True), done.stderr[-2000:]
    run = shop.run if child == "upload" else shop.run.with_name(how)
    assert "leaked" in (run / "appliance.log").read_text(encoding="utf-8")
    assert shop.leaks(done.stdout, done.stderr) == {}


def test_an_endpoint_that_repeats_the_key_in_its_answer(shop: Shop) -> None:
    said = json.dumps({"error": {"message": f"leaked {canary.in_all_spellings(KEY)}"}})
    with Server(lambda _prompt, _before: Reply(status=401, body=said)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            done = shop.call(f"appliance dataset paraphrase train.csv out.csv --model m --base-url {server.url}")
        finally:
            server.shutdown()
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert (done.returncode, "leaked" in done.stderr) == (4, True), done.stderr[-2000:]
    assert shop.leaks(done.stdout, done.stderr) == {}


@pytest.mark.usefixtures("finished")
def test_a_secret_in_the_run_is_refused_and_not_shown(shop: Shop) -> None:
    spelled = canary.SPELLED["base64 behind 'u:'"](KEY)
    log = shop.run / "appliance.log"
    before = log.read_bytes()
    shop.planted.append(log)
    try:
        with log.open("a", encoding="utf-8") as handle:
            handle.write(f"sent {spelled}\n")
        done = shop.call("appliance publish runs/shop --redo publish")
        assert (done.returncode, "logs_are_clean" in done.stderr) == (6, True), done.stderr
        assert shop.leaks(done.stdout, done.stderr) == {}
    finally:
        log.write_bytes(before)
        shop.planted.remove(log)
