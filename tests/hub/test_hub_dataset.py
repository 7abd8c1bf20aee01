"""A CSV from a dataset on the Hub: the real client against a loopback Hub that knows two repositories."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from appliance.errors import RecipeError
from appliance.hub.dataset_file import DatasetFile
from appliance.process import files
from tests.conftest import read_csv
from tests.helpers import warm

TOKEN = "hf_" + "x" * 20
OLD, NEW = "a" * 40, "b" * 40


def csv_text(count: int, answer: str) -> bytes:
    return ("instruction,output\n" + "".join(f"질문 {i}?,{answer} {i}\n" for i in range(count))).encode()


class LoopbackHub(ThreadingHTTPServer):
    """Datasets of small files, after the Hub's endpoints that a download of one file asks. Over plain http the client
    builds its exceptions from X-Error-Code."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits = {
            OLD: {"train.csv": csv_text(40, "옛날")},
            NEW: {"train.csv": csv_text(50, "새"), "data/more.jsonl": b"{}\n", "README.md": b"# Data\n"},
        }
        self.refs = {"main": NEW, "v1": OLD, "refs/convert/parquet": NEW}
        self.cut = 0  # bytes of a file that are never sent
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: LoopbackHub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {unquote(path)}")
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            self.info(parts[2:])
        else:
            self.file(parts[1:])

    def info(self, parts: list[str]) -> None:
        commit = self.commit(parts[:2], parts[3] if parts[2:3] == ["revision"] else "main")
        if commit:
            files = [{"rfilename": name, "size": len(data)} for name, data in self.server.commits[commit].items()]
            facts = {"id": "/".join(parts[:2]), "sha": commit, "private": False, "tags": [], "siblings": files}
            self.reply(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def file(self, parts: list[str]) -> None:
        commit = self.commit(parts[:2], parts[3])
        name = unquote("/".join(parts[4:]))
        if commit and name not in self.server.commits[commit]:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif commit:
            data = self.server.commits[commit][name][: -self.server.cut or None]
            self.reply(200, data, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def commit(self, repo: list[str], revision: str) -> str | None:
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo != ["shop", "faq"] and (repo != ["shop", "secret"] or not allowed):
            self.reply(404 if allowed else 401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        revision = unquote(revision)
        found = revision if revision in self.server.commits else self.server.refs.get(revision)
        if found is None:
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return found

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def called(hub_url: str, home: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads HF_ENDPOINT when it is imported. Commands of `appliance` are forks."""
    environment = {
        "PATH": os.environ["PATH"], "HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HOME": str(home),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more,
    }  # fmt: skip
    if not command[0].startswith("hf:"):
        return warm.typed(shlex.join(["appliance", *command]), cwd=Path.cwd(), env=environment)
    code = (
        "import sys; from appliance.hub.dataset_file import DatasetFile; from appliance.errors import "
        "ApplianceError\n"
        "try: print(*DatasetFile.parse(sys.argv[1]).fetch())\n"
        "except ApplianceError as error: print(error, '|', error.hint); sys.exit(error.exit_code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True, check=False
    )


def test_an_address_is_taken_apart() -> None:
    parsed = [
        DatasetFile.parse("hf://datasets/shop/faq/train.csv"),
        DatasetFile.parse(" hf://datasets/shop/faq@v1.0/data/train.csv "),
        DatasetFile.parse("hf://datasets/shop/faq@refs/convert/parquet/default/0.parquet"),
        DatasetFile.parse("hf://datasets/shop/faq@a%2Fb/a@b.csv"),
    ]
    assert [(file.repo, file.revision, file.file) for file in parsed] == [
        ("shop/faq", None, "train.csv"),
        ("shop/faq", "v1.0", "data/train.csv"),
        ("shop/faq", "refs/convert/parquet", "default/0.parquet"),
        ("shop/faq", "a/b", "a@b.csv"),
    ]
    assert str(parsed[1]) == "hf://datasets/shop/faq@v1.0/data/train.csv"


@pytest.mark.parametrize(
    "text",
    ["hf://datasets/faq/train.csv", "hf://datasets/shop/faq", "hf://datasets/shop/faq@v1", "hf://shop/faq/train.csv",
     "hf://datasets/shop/faq/", "hf://datasets/shop/faq@/train.csv", "hf://datasets//faq/train.csv"],
)  # fmt: skip
def test_what_is_no_address_is_a_recipe_error(text: str) -> None:
    with pytest.raises(RecipeError, match="expected hf://datasets/USER/NAME@REVISION/FILE") as caught:
        DatasetFile.parse(text)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["../faq", "shop/..", "shop/faq--2", "가게/faq", "shop/" + "x" * 100, "shop/a b"])
def test_a_dataset_that_cannot_be_a_repository(name: str) -> None:
    with pytest.raises(RecipeError, match=r"not a file of a dataset on the Hub: .* cannot be a repository"):
        DatasetFile.parse(f"hf://datasets/{name}/train.csv")


def test_a_file_is_fetched_at_a_pinned_commit_and_then_needs_no_network(hub: LoopbackHub, tmp_path: Path) -> None:
    for revision, commit in (("", NEW), ("@v1", OLD), (f"@{OLD}", OLD)):
        done = called(hub.url, tmp_path, f"hf://datasets/shop/faq{revision}/train.csv")
        assert done.returncode == 0, done.stderr
        path, seen = done.stdout.rsplit(maxsplit=1)
        assert (seen, Path(path).read_bytes()) == (commit, hub.commits[commit]["train.csv"])
    assert not any("/resolve/main/" in asked or "/resolve/v1/" in asked for asked in hub.asked)
    before = len(hub.asked)
    done = called("http://127.0.0.1:9", tmp_path, f"hf://datasets/shop/faq@{NEW}/train.csv")
    assert (done.returncode, done.stdout.split()[-1], len(hub.asked)) == (0, NEW, before)


@pytest.mark.parametrize(
    ("address", "seen", "hint"),
    [
        ("hf://datasets/shop/secret/train.csv",
         "the dataset shop/secret cannot be fetched: it does not exist, or is hidden from a request without a token",
         "a private or gated dataset needs the HF_TOKEN"),
        ("hf://datasets/shop/faq@v9/train.csv",
         "the dataset shop/faq cannot be fetched: it has no revision v9", "check the name"),
        ("hf://datasets/shop/faq/test.csv", f"the dataset shop/faq has no file test.csv at commit {NEW}",
         "it has data/more.jsonl, train.csv, README.md"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_exit_5_with_the_way_on(
    hub: LoopbackHub, tmp_path: Path, address: str, seen: str, hint: str
) -> None:
    done = called(hub.url, tmp_path, address)
    assert (done.returncode, done.stderr) == (5, "")
    message, _, advice = done.stdout.partition(" | ")
    assert message == seen
    assert hint in advice


def test_a_private_dataset_is_fetched_with_a_token_that_is_never_shown(hub: LoopbackHub, tmp_path: Path) -> None:
    wrong = called(hub.url, tmp_path, "hf://datasets/shop/secret/train.csv", HF_TOKEN="hf_wrong")
    assert wrong.returncode == 5
    assert "the Hub does not accept the token (401)" in wrong.stdout
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    done = called(hub.url, tmp_path, "hf://datasets/shop/secret/train.csv", HF_TOKEN_FILE=str(tmp_path / "token"))
    assert (done.returncode, done.stdout.split()[-1]) == (0, NEW)
    assert TOKEN not in done.stdout + done.stderr
    assert "hf_wrong" not in wrong.stdout + wrong.stderr


def test_without_a_network_a_branch_is_not_guessed_from_the_cache(hub: LoopbackHub, tmp_path: Path) -> None:
    assert called(hub.url, tmp_path, "hf://datasets/shop/faq/train.csv").returncode == 0
    done = called("http://127.0.0.1:9", tmp_path, "hf://datasets/shop/faq/train.csv")
    assert done.returncode == 5
    assert "the dataset shop/faq cannot be fetched: " in done.stdout


def test_a_file_that_arrives_short_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.cut = 7
    done = called(hub.url, tmp_path, "hf://datasets/shop/faq/train.csv")
    assert done.returncode == 5
    assert f"on the Hub train.csv has {len(hub.commits[NEW]['train.csv'])}" in done.stdout
    assert "train.csv of the dataset shop/faq arrived damaged 2 times" in done.stdout
    assert not list(tmp_path.rglob("snapshots/*/train.csv"))  # nobody takes it by accident


# --- in a run


@pytest.fixture
def recipe(tmp_path: Path, base_dir: Path) -> Path:
    text = (
        f"name: shop\nengine: transformers\nmodel: {{id: {base_dir}, load_in_4bit: false}}\n"
        "data: {csv: hf://datasets/shop/faq/train.csv}\n"
    )
    (tmp_path / "shop.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "shop.yaml"


@pytest.mark.slow
def test_a_run_keeps_the_commit_it_began_with(hub: LoopbackHub, recipe: Path, tmp_path: Path) -> None:
    runs, run = ("--runs-dir", str(tmp_path / "runs")), tmp_path / "runs" / "shop"
    checked = called(hub.url, tmp_path, "check", str(recipe), *runs)
    assert checked.returncode == 0, checked.stderr
    assert f"train.csv of the dataset shop/faq at commit {NEW}" in checked.stderr
    recorded = files.read_json(run / "run.json")["csv"]
    assert recorded["commit"] == NEW
    assert recorded["typed"] == "hf://datasets/shop/faq/train.csv"

    hub.refs["main"] = OLD  # the branch moves while the run is under way
    prepared = called(hub.url, tmp_path, "prepare", str(run))
    assert prepared.returncode == 0, prepared.stderr
    assert {row["output"][0] for row in read_csv(run / "prepare" / "test.csv")} == {"새"}
    assert files.read_json(run / "run.json")["csv"] == recorded

    # done: neither the Hub nor the cache is needed any more
    offline = called("http://127.0.0.1:9", tmp_path / "elsewhere", "prepare", str(run))
    assert offline.returncode == 0, offline.stderr
    assert "prepare   already done" in offline.stderr

    other = called(hub.url, tmp_path, "prepare", str(run), "--set", "data.csv=hf://datasets/shop/faq@v1/train.csv")
    assert other.returncode == 8
    assert "CSV (sha256): was" in other.stderr

    anew = called(hub.url, tmp_path, "prepare", str(run), "--redo", "prepare")
    assert anew.returncode == 0, anew.stderr
    assert files.read_json(run / "run.json")["csv"]["commit"] == OLD
    assert {row["output"][0] for row in read_csv(run / "prepare" / "test.csv")} == {"옛"}


def test_a_file_on_the_hub_can_be_checked_without_a_recipe(hub: LoopbackHub, tmp_path: Path) -> None:
    done = called(hub.url, tmp_path, "check", "hf://datasets/shop/faq@v1/train.csv")
    assert done.returncode == 0, done.stderr
    assert "UTF-8" in done.stdout
    assert "32 train, 4 val, 4 test" in done.stdout
    assert called(hub.url, tmp_path, "check", "hf://datasets/shop/faq@v1").returncode == 2


# --- as a CSV with a note


@pytest.mark.parametrize("address", ["shop/faq/train.csv@v1", "hf://datasets/shop/faq@v1/train.csv"])
def test_a_csv_is_copied_with_the_commit_in_its_note(hub: LoopbackHub, tmp_path: Path, address: str) -> None:
    hub.commits[OLD]["train.csv"] = "Q;A;topic\n가격은?;만원;값\n;답만;값\n배송은?;이틀;배송\n".encode("cp949")
    out = tmp_path / "out.csv"
    done = called(hub.url, tmp_path, "dataset", "hub", address, str(out), "--group", "topic")
    assert done.returncode == 0, done.stderr
    assert [(row["instruction"], row["output"], row["group"]) for row in read_csv(out)] == [
        ("가격은?", "만원", "값"),
        ("배송은?", "이틀", "배송"),
    ]
    note = files.read_json(tmp_path / "out.csv.origin.json")
    assert (note["read"], note["written"], sum(note["dropped"].values())) == (3, 2, 1)
    asked = {name: note["options"][name] for name in ("repo", "file", "asked_revision", "commit")}
    assert asked == {"repo": "shop/faq", "file": "train.csv", "asked_revision": "v1", "commit": OLD}
    assert note["inputs"][0]["sha256"] == hashlib.sha256(hub.commits[OLD]["train.csv"]).hexdigest()
    assert called(hub.url, tmp_path, "check", str(out)).returncode == 3  # two rows: too few to split, but read
    again = called("http://127.0.0.1:9", tmp_path, "dataset", "hub", address, str(out))
    assert (again.returncode, "already exists" in again.stderr) == (3, True)


def test_records_are_known_by_their_content(hub: LoopbackHub, tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"질문 {i}?", "answer": f"답 {i}", "topic": "x"}) for i in range(3)]
    hub.commits[NEW]["data/rows.txt"] = "\n".join(lines).encode()
    out = tmp_path / "out.csv"
    done = called(hub.url, tmp_path, "dataset", "hub", "shop/faq/data/rows.txt", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["options"]["commit"] == NEW
    assert [row["instruction"] for row in read_csv(out)] == ["질문 0?", "질문 1?", "질문 2?"]


@pytest.mark.parametrize(("address", "code"), [("faq", 2), ("shop/faq", 2), ("shop/faq/absent.csv", 5)])
def test_what_cannot_be_fetched_leaves_nothing_behind(
    hub: LoopbackHub, tmp_path: Path, address: str, code: int
) -> None:
    done = called(hub.url, tmp_path, "dataset", "hub", address, str(tmp_path / "out.csv"))
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out.csv*"))
