"""The stand-in of the Hub against the real client, which lives in child processes: it reads HF_ENDPOINT at import."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import loopback_hub
from tests.helpers.loopback_hub import LoopbackHub, run_client

CARD = "---\nlicense: mit\nlanguage: [ko]\ntags: [lora]\n---\n# 한국어 모델\n"
WEIGHTS = bytes(range(256)) * 200


def run(code: str, hub: LoopbackHub, **environ: str) -> Any:
    """What the client code left in `told`."""
    prelude = "import json, os, pathlib\nfrom huggingface_hub import HfApi\napi = HfApi()\ntold = {}\n"
    whole = f"{prelude}{code}\nprint('\\n' + json.dumps(told))"
    rc, out, err = run_client(whole, hub.environ | environ)
    assert rc == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with loopback_hub.started(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "release"
    (made / "sub").mkdir(parents=True)
    (made / "README.md").write_text(CARD, encoding="utf-8")
    (made / "model.safetensors").write_bytes(WEIGHTS)
    (made / "sub" / "한글.txt").write_text("둘\n", encoding="utf-8")
    (made / "empty.txt").write_bytes(b"")
    return made


UP_AND_DOWN = """
from huggingface_hub import snapshot_download
folder = pathlib.Path(os.environ["FOLDER"])
told["user"] = api.whoami()["auth"]["accessToken"]["role"]
told["url"] = str(api.create_repo("alice/up", private=True))
told["again"] = str(api.create_repo("alice/up", private=True, exist_ok=True))
first = api.upload_folder(repo_id="alice/up", folder_path=folder, commit_message="하나")
second = api.upload_folder(repo_id="alice/up", folder_path=folder, commit_message="둘")
told["commits"] = [first.oid, second.oid]
info = api.model_info("alice/up", files_metadata=True)
told["info"] = [info.sha, info.private, info.card_data.license]
told["hashes"] = {f.rfilename: f.lfs.sha256 if f.lfs else f.blob_id for f in info.siblings}
copy = pathlib.Path(snapshot_download("alice/up", revision=first.oid))
told["same"] = [(copy / p.relative_to(folder)).read_bytes() == p.read_bytes() for p in folder.rglob("*") if p.is_file()]
api.update_repo_settings("alice/up", visibility="public")
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_model_goes_up_once_and_comes_back_the_same(tmp_path: Path, folder: Path, xet: bool) -> None:
    with loopback_hub.started(tmp_path, xet=xet) as hub:
        told = run(UP_AND_DOWN, hub, FOLDER=str(folder))
        repo, log, counts = hub.repo("alice/up"), hub.log(), hub.counts()
    assert repo is not None
    assert told["user"] == "write"
    assert told["url"] == told["again"] == f"{hub.endpoint}/alice/up"
    assert [commit["title"] for commit in repo["commits"]] == ["initial commit", "하나"]  # the second sent nothing
    head = repo["commits"][-1]
    assert told["commits"] == [head["id"], head["id"]]
    assert told["info"] == [head["id"], True, "mit"]
    assert repo["visibility"] == "public"
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert told["hashes"]["model.safetensors"] == head["files"]["model.safetensors"]["sha256"] == sha256
    card = CARD.encode()
    assert told["hashes"]["README.md"] == hashlib.sha1(b"blob %d\0" % len(card) + card).hexdigest()
    assert head["files"]["empty.txt"]["lfs"] is False
    assert told["same"] == [True] * 4
    assert counts["lfs_puts"] == (0 if xet else 1)
    assert sum("/commit/" in entry["path"] for entry in log) == 1
    kept = b"".join(path.read_bytes() for path in hub.state.rglob("*") if path.is_file())
    assert hub.token.encode() not in kept
    assert b"alice-write" in kept
    assert not re.search(rb"X-Amz-Signature=[0-9a-f]", kept)


def test_large_files_go_in_parts_and_listings_in_pages(tmp_path: Path, folder: Path) -> None:
    code = """
    from huggingface_hub import hf_hub_download
    api.create_repo("alice/parts", private=True)
    api.upload_folder(repo_id="alice/parts", folder_path=os.environ["FOLDER"])
    api.create_branch("alice/parts", branch="a/b")
    tree = api.list_repo_tree("alice/parts", recursive=True, revision="a/b", expand=True)
    told["paths"] = [item.path for item in tree]
    told["inside"] = [item.path for item in api.list_repo_tree("alice/parts", "sub", revision="a/b")]
    told["some"] = [item.path for item in api.get_paths_info("alice/parts", ["sub", "none", "README.md"])]
    told["size"] = os.path.getsize(hf_hub_download("alice/parts", "model.safetensors"))
    """
    options: dict[str, Any] = {
        "multipart_over": 20_000,
        "part_bytes": 20_000,
        "page_size": 2,
        "storage_host": "localhost",
    }
    with loopback_hub.started(tmp_path, **options) as hub:
        told = run(code.replace("\n    ", "\n"), hub, FOLDER=str(folder))
        log = hub.log()
    assert told["paths"] == [".gitattributes", "README.md", "empty.txt", "model.safetensors", "sub", "sub/한글.txt"]
    assert told["inside"] == ["sub/한글.txt"]
    assert told["some"] == ["sub", "README.md"]
    assert told["size"] == len(WEIGHTS)
    puts = [entry["bytes_in"] for entry in log if entry["method"] == "PUT"]
    assert puts == [20_000, 20_000, 11_200]
    assert sum("/tree/a%2Fb" in entry["path"] for entry in log) == 4  # three pages and the folder
    assert log[-1]["path"].startswith("/_lfs/")
    assert log[-1]["token"] is None  # another host name gets no token


def test_a_dataset_is_loaded_by_the_datasets_library(hub: LoopbackHub) -> None:
    hub.add_repo("alice/rows", "dataset", files={"train_ds.csv": "instruction,output\n하나?,둘!\n", "README.md": CARD})
    code = """
    from datasets import load_dataset
    told["rows"] = load_dataset("alice/rows", data_files="train_ds.csv", split="train").to_list()
    """
    assert run(code.replace("\n    ", "\n"), hub)["rows"] == [{"instruction": "하나?", "output": "둘!"}]


ATTEMPTS = """
import warnings
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, hf_hub_download
warnings.simplefilter("ignore")

def attempt(name, call):
    try:
        call()
        told[name] = "done"
    except Exception as error:
        told[name] = f"{type(error).__name__} {getattr(getattr(error, 'response', None), 'status_code', '')}".strip()

def add(token=None, repo="alice/private", path="a.txt", text="x", **more):
    addition = CommitOperationAdd(path, text.encode())
    HfApi(token=token).create_commit(repo, [addition], commit_message="by hand", **more)

tokens = json.loads(os.environ["TOKENS"])
"""


def attempts(hub: LoopbackHub, calls: dict[str, str], **tokens: str) -> dict[str, str]:
    """How each call ended: done, or the exception's class and HTTP status."""
    lines = [f"attempt({name!r}, lambda: {call})" for name, call in calls.items()]
    told: dict[str, str] = run("\n".join([ATTEMPTS, *lines]), hub, TOKENS=json.dumps(tokens))
    return told


def test_what_each_role_of_a_token_may_do(hub: LoopbackHub) -> None:
    tokens = {name: loopback_hub.new_token() for name in ("bob", "reader", "fine", "gone", "member")}
    hub.add_user("bob", tokens["bob"])
    hub.add_user("alice", tokens["reader"], role="read")
    hub.add_user("alice", tokens["fine"], role="fineGrained", writes=["alice/fine"])
    hub.add_user("carol", tokens["gone"])
    hub.add_user("dave", tokens["member"], orgs=["lab"])
    hub.revoke(tokens["gone"])
    hub.add_repo("alice/private", files={"config.json": "{}"})
    hub.add_repo("alice/open", private=False)
    hub.add_repo("meta/gated", private=False, files={"config.json": "{}"}, gated="manual")
    calls = {
        "own": "api.model_info('alice/private')",
        "hidden": "HfApi(token=tokens['bob']).model_info('alice/private')",
        "anonymous": "HfApi(token=False).model_info('alice/private')",
        "public": "HfApi(token=False).model_info('alice/open')",
        "revoked": "HfApi(token=tokens['gone']).model_info('alice/open')",
        "unknown token": "HfApi(token='hf_unknown').whoami()",
        "reader reads": "HfApi(token=tokens['reader']).model_info('alice/private')",
        "reader writes": "add(tokens['reader'])",
        "foreign write": "add(tokens['bob'], 'alice/open')",
        "wrong namespace": "api.create_repo('bob/mine')",
        "own organization": "HfApi(token=tokens['member']).create_repo('lab/model')",
        "out of scope": "HfApi(token=tokens['fine']).create_repo('alice/other')",
        "in scope": "HfApi(token=tokens['fine']).create_repo('alice/fine')",
        "gated info": "api.model_info('meta/gated')",
        "gated file": "hf_hub_download('meta/gated', 'config.json')",
        "gated check": "api.auth_check('meta/gated')",
        "no such file": "hf_hub_download('alice/private', 'none.json')",
        "no such revision": "api.model_info('alice/private', revision='none')",
    }
    assert attempts(hub, calls, **tokens) == {
        "own": "done",
        "hidden": "RepositoryNotFoundError 404",
        "anonymous": "RepositoryNotFoundError 401",
        "public": "done",
        "revoked": "HfHubHTTPError 401",
        "unknown token": "HfHubHTTPError 401",
        "reader reads": "done",
        "reader writes": "HfHubHTTPError 403",
        "foreign write": "HfHubHTTPError 403",
        "wrong namespace": "HfHubHTTPError 403",
        "own organization": "done",
        "out of scope": "HfHubHTTPError 403",
        "in scope": "done",
        "gated info": "done",
        "gated file": "GatedRepoError 403",
        "gated check": "GatedRepoError 403",
        "no such file": "RemoteEntryNotFoundError 404",
        "no such revision": "RevisionNotFoundError 404",
    }
    refusal = ask(hub, "POST", "/api/repos/create", b'{"name": "x"}', token=tokens["reader"])[1]["X-Error-Message"]
    assert "you must use a write token" in refusal
    status, headers, _ = ask(hub, "GET", "/api/whoami-v2", token=tokens["gone"])
    assert (status, headers["X-Error-Message"]) == (401, "Invalid credentials in Authorization header")
    fine = json.loads(ask(hub, "GET", "/api/whoami-v2", token=tokens["fine"])[2])["auth"]["accessToken"]
    assert fine["role"] == "fineGrained"
    assert [scope["entity"]["name"] for scope in fine["fineGrained"]["scoped"]] == ["alice/fine"]


def test_invalid_commits_are_refused(hub: LoopbackHub) -> None:
    first = hub.add_repo("alice/rules", files={"a.txt": "1"})
    hub.push("alice/rules", {"a.txt": "2"})
    calls = {
        "stale parent": f"add(repo='alice/rules', parent_commit={first!r})",
        "absent": "api.delete_file('none.txt', 'alice/rules')",
        "deleted": "api.delete_file('a.txt', 'alice/rules')",
        "local base": "add(repo='alice/rules', path='README.md', text='---\\nbase_model: /models/x\\n---\\n')",
        "licence": "add(repo='alice/rules', path='README.md', text='---\\nlicense: mine\\n---\\n')",
        "tags": "add(repo='alice/rules', path='README.md', text='---\\ntags: one\\n---\\n')",
        "broken": "add(repo='alice/rules', path='README.md', text='---\\n[: -\\n---\\n')",
        "good": "add(repo='alice/rules', path='README.md', text='---\\nbase_model: org/x\\nlicense: mit\\n---\\n')",
        "pull request": "add(repo='alice/rules', create_pr=True)",
    }
    assert attempts(hub, calls) == {
        "stale parent": "HfHubHTTPError 412",
        "absent": "RemoteEntryNotFoundError 404",
        "deleted": "done",
        **dict.fromkeys(["local base", "licence", "tags", "broken"], "ValueError"),
        "good": "done",
        "pull request": "done",
    }
    repo = hub.repo("alice/rules")
    assert repo is not None
    assert sorted(repo["commits"][-1]["files"]) == [".gitattributes", "README.md"]
    assert list(repo["pulls"]) == ["refs/pr/1"]


def test_an_lfs_file_must_be_stored_before_it_is_committed(hub: LoopbackHub) -> None:
    hub.add_repo("alice/missing")
    lines = [
        {"key": "header", "value": {"summary": "s"}},
        {"key": "lfsFile", "value": {"path": "m.bin", "algo": "sha256", "oid": "0" * 64, "size": 5}},
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    status, headers, _ = ask(hub, "POST", "/api/models/alice/missing/commit/main", body)
    assert status == 400
    assert "does not exist: m.bin" in headers["X-Error-Message"]
    status, _, _ = ask(hub, "PUT", f"/_lfs/{'0' * 64}?size=5&X-Amz-Signature=guess", b"12345", token="")
    assert status == 403


# One 503 or 429 is survived where the client retries. After a lost reply the commit is there. What goes wrong on the
# way of one file is a RuntimeError: bytes that are not those announced, a token revoked before the file is verified.
FAULTS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    # name: kind, how, the end of the upload, commits added
    "429 at batch": ("status", {"match": "/batch", "status": 429, "headers": {"Retry-After": "0"}}, "done", 1),
    "503 at PUT": ("status", {"match": "^PUT", "status": 503}, "done", 1),
    "drop in PUT": ("drop", {"match": "^PUT", "request_bytes": 20_000}, "done", 1),
    "quota": ("quota", {"match": "/batch"}, "HfHubHTTPError 403", 0),
    "500 at commit": ("status", {"match": "/commit/", "status": 500}, "HfHubHTTPError 500", 0),
    "409 at commit": ("status", {"match": "/commit/", "status": 409}, "HfHubHTTPError 409", 0),
    "stale": ("stale", {"match": "/commit/"}, "HfHubHTTPError 412", 0),
    "lost reply": ("lose_reply", {"match": "/commit/"}, "RemoteProtocolError|ReadError", 1),
    "half a reply": ("drop", {"match": "/commit/", "response_bytes": 9}, "RemoteProtocolError|ReadError", 1),
    "504 but done": ("status", {"match": "/commit/", "status": 504, "executed": True}, "HfHubHTTPError 504", 1),
    "flip in PUT": ("flip", {"match": "^PUT"}, "RuntimeError", 0),
    "delay": ("delay", {"match": "/commit/", "seconds": 0.2}, "done", 1),
    "throttle": ("throttle", {"match": "^PUT", "rate": 500_000}, "done", 1),
    "revoke": ("revoke", {"match": "^PUT", "request_bytes": 9, "token_name": "erin-write"}, "RuntimeError", 0),
}


def test_each_fault_fires_once(hub: LoopbackHub) -> None:
    token = loopback_hub.new_token()
    hub.add_user("erin", token)
    hub.add_repo("erin/faulty")
    code = f"""
from tests.helpers.loopback_hub import Control
control = Control(os.environ["HF_ENDPOINT"])
me = HfApi(token=tokens["erin"])
commits = lambda: len(control.repo("erin/faulty")["commits"])
for number, (name, (kind, how, *_)) in enumerate(json.loads({json.dumps(json.dumps(FAULTS))}).items()):
    before = commits()
    control.fault(kind, **how)
    content = bytes([0, number]) * 20_000
    attempt(name, lambda: me.upload_file(path_or_fileobj=content, path_in_repo="m.bin", repo_id="erin/faulty"))
    control.clear_faults()
    told[name] = [told[name], commits() - before]
"""
    told = run(ATTEMPTS + code, hub, TOKENS=json.dumps({"erin": token}))
    for name, (_, _, end, added) in FAULTS.items():
        assert re.fullmatch(end, told[name][0]), (name, told[name])
        assert told[name][1] == added, (name, told[name])
    faults = [entry["fault"] for entry in hub.log() if entry["fault"]]
    assert faults == [kind.replace("quota", "status").replace("stale", "status") for kind, *_ in FAULTS.values()]


def test_a_fault_meets_the_request_with_its_number_for_as_long_as_ordered(hub: LoopbackHub) -> None:
    start = len(hub.log())
    hub.fault("status", at=start + 1, times=2, status=503)
    assert [ask(hub, "GET", "/api/whoami-v2")[0] for _ in range(4)] == [200, 503, 503, 200]
    hub.clear_faults()
    hub.fault("status", match="whoami", nth=2, times=0, status=500)
    assert [ask(hub, "GET", "/api/whoami-v2")[0] for _ in range(3)] == [200, 500, 500]
    hub.clear_faults()
    hub.fault("status", match="whoami.*/never", times=0, status=500, onwards=True)
    hub.fault("status", match="^GET /api/whoami-v2$", nth=2, times=0, status=500, onwards=True)
    asked = ["/api/whoami-v2", "/api/other", "/api/whoami-v2", "/api/other"]
    assert [ask(hub, "GET", path)[0] for path in asked] == [200, 404, 500, 500]
    hub.clear_faults()
    assert [entry["index"] for entry in hub.log()[start:]] == list(range(start, start + 11))
    with pytest.raises(ValueError, match="expected one of status, drop"):
        hub.fault("explode")


def test_a_dropped_connection_is_reset_after_the_bytes_ordered(hub: LoopbackHub) -> None:
    hub.add_repo("alice/big", files={"a.txt": "a" * 5000})
    hub.fault("drop", match="GET .*/a.txt", response_bytes=1000)
    path = "/alice/big/resolve/main/a.txt"
    with socket.create_connection(("127.0.0.1", int(hub.endpoint.rsplit(":", 1)[1])), timeout=10) as link:
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {hub.token}\r\n\r\n".encode())
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < 1000:
            received += link.recv(65536)
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    assert received.partition(b"\r\n\r\n")[2] == b"a" * 1000
    status, headers, body = ask(hub, "GET", path, Range="bytes=4990-")
    assert (status, headers["Content-Range"], body) == (206, "bytes 4990-4999/5000", b"a" * 10)


def test_a_hanging_request_is_seen_and_can_be_let_go(hub: LoopbackHub) -> None:
    hub.fault("hang", match="whoami")
    link = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=0.3)
    link.request("GET", "/api/whoami-v2")
    entry = hub.wait_for("whoami-v2")
    with pytest.raises(TimeoutError):
        link.getresponse()
    assert hub.log()[-1]["status"] == 0
    assert entry["method"] == "GET"
    hub.clear_faults()
    link.sock.settimeout(10)
    with pytest.raises(ConnectionError):
        link.sock.recv(1)
    link.close()


def test_a_hub_without_xet_refuses_it_as_the_client_reports_it(hub: LoopbackHub) -> None:
    hub.add_repo("alice/no-xet")
    code = (
        "attempt('up', lambda: api.upload_file(path_or_fileobj=b'\\0', path_in_repo='m.bin', repo_id='alice/no-xet'))"
    )
    assert run(ATTEMPTS + code, hub, TOKENS="{}", HF_HUB_DISABLE_XET="0") == {"up": "ConnectionError"}


def test_the_stand_in_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from tests.helpers.loopback_hub import LoopbackHub
print(LoopbackHub(pathlib.Path({str(tmp_path)!r}), "alice", False, {{}}).endpoint, flush=True)
os._exit(0)
"""
    rc, out, err = run_client(code, {})
    assert rc == 0, err
    port = int(out.strip().rsplit(":", 1)[1])
    with pytest.raises(ConnectionError):
        connect_again_and_again(port, seconds=10)


def test_everything_survives_a_hard_restart(tmp_path: Path) -> None:
    with loopback_hub.started(tmp_path) as hub:
        head = hub.add_repo("alice/kept", files={"m.safetensors": WEIGHTS})
        assert ask(hub, "GET", "/api/models/alice/kept")[0] == 200
        endpoint, repo, log = hub.endpoint, hub.repo("alice/kept"), hub.log()
        hub.stop()
        with pytest.raises(ConnectionError):
            ask(hub, "GET", "/api/models/alice/kept")
        hub.start()
        assert hub.endpoint == endpoint
        assert hub.repo("alice/kept") == repo
        assert hub.log() == log
        status, _, body = ask(hub, "GET", "/api/models/alice/kept")
        assert (status, json.loads(body)["sha"]) == (200, head)


def connect_again_and_again(port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        time.sleep(0.01)


def ask(
    hub: LoopbackHub, method: str, path: str, body: bytes | None = None, token: str | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request without the client; by alice unless another token, or none (""), is given."""
    link = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    if token != "":
        headers["Authorization"] = f"Bearer {token or hub.token}"
    link.request(method, path, body, headers)
    reply = link.getresponse()
    content = reply.read()
    link.close()
    return reply.status, reply.headers, content
