"""A stand-in for the Hugging Face Hub that tests start as a child process on a free loopback port.

    with loopback_hub.started(tmp_path) as hub:
        hub.fault("lose_reply", match="POST .*/commit/")
        rc, out, err = loopback_hub.run_client("from huggingface_hub import HfApi; ...", hub.environ)
        assert hub.repo("alice/model")["commits"][-1]["files"]["model.safetensors"]["size"] == 8

huggingface_hub reads HF_ENDPOINT when it is imported, so the client must live in a process of its own, started
with `hub.environ`. Everything here talks to the stand-in over HTTP: several processes may share one.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.loopback_hub.faults import Fault

_ROOT = Path(__file__).parents[3]
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


class Control:
    """Orders to a stand-in that runs somewhere on this machine. `endpoint`: as in HF_ENDPOINT."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    # what is on the Hub

    def add_user(
        self, name: str, token: str, role: str = "write", orgs: Sequence[str] = (), writes: Sequence[str] = ()
    ) -> None:
        """A token. `role`: read, write, fineGrained; `writes`: namespaces and repositories a fine-grained one may
        write. Called again with another token, the user has two; the log names them `name-role`."""
        order = {"user": name, "token": token, "token_name": f"{name}-{role}", "role": role}
        self._order("users", order | {"orgs": list(orgs), "writes": list(writes)})

    def revoke(self, token: str) -> None:
        """`token`: the token itself or its name."""
        self._order("revoke", {"token": token})

    def add_repo(
        self,
        repo_id: str,
        type: str = "model",
        private: bool = True,
        files: Mapping[str, bytes | str] | None = None,
        gated: str | bool = False,
        granted: Sequence[str] = (),
    ) -> str:
        """Returns the commit at its head."""
        visibility = "private" if private else "public"
        order = {"id": repo_id, "type": f"{type}s", "visibility": visibility, "gated": gated, "granted": list(granted)}
        return str(self._order("repos", order | {"files": _encoded(files or {})}))

    def push(self, repo_id: str, files: Mapping[str, bytes | str | None], type: str = "model") -> str:
        """A commit by somebody else; None deletes a file. Returns the new head."""
        order = {"id": repo_id, "type": f"{type}s", "files": _encoded(files), "title": "Push", "author": "somebody"}
        return str(self._order("push", order))

    def repo(self, repo_id: str, type: str = "model") -> dict[str, Any] | None:
        """`visibility`, `gated`, `branches`, `tags`, `pulls`, and main's `commits` from the oldest to the newest, each
        with `id`, `parent`, `title`, `message`, `author`, `date`, `files` {path: {oid, size, sha256, lfs}}."""
        told: dict[str, Any] | None = self._order("repo", {"id": repo_id, "type": f"{type}s"})
        return told

    # what happens on it

    def log(self, since: int = 0) -> list[dict[str, Any]]:
        """All requests from number `since` on, in order of arrival: index, method, path, token (its name), status,
        bytes_in, bytes_out, fault. Status 0: no reply yet, or ever. Kept over restarts in hub-state/requests.jsonl."""
        return list(self._order("log", {"since": since}))

    def counts(self) -> dict[str, Any]:
        """requests, statuses, commits (of all repositories), lfs_puts, lfs_bytes, faults_fired."""
        return dict(self._order("counts", {}))

    def fault(self, kind: str, match: str = "", **how: Any) -> None:
        """Orders a fault; kinds and arguments: `faults.Fault`. Two more kinds by name:
        quota (403, in the Hub's words for a full one), stale (412, as after a commit by somebody else)."""
        named: dict[str, dict[str, Any]] = {
            "quota": {"status": 403, "message": "Private repository storage limit reached, please upgrade your plan"},
            "stale": {"status": 412, "message": "A commit has happened since. Please refresh and try again."},
        }
        order = named.get(kind, {}) | {"kind": "status" if kind in named else kind, "match": match} | how
        Fault(**order)  # a wrong order fails here, not in the stand-in
        self._order("faults", order)

    def clear_faults(self) -> None:
        """Forget all faults and release what hangs."""
        self._order("clear", {})

    def wait_for(self, match: str, seconds: float = 20) -> dict[str, Any]:
        """The first request in the log whose "METHOD /path" holds `match`, as soon as there is one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for entry in self.log():
                if match in f"{entry['method']} {entry['path']}":
                    return entry
            time.sleep(0.02)
        raise TimeoutError(f"no request {match!r} within {seconds} s")

    def _order(self, verb: str, order: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/_control/{verb}", json.dumps(order).encode(), method="POST")
        with _OPENER.open(request, timeout=30) as reply:
            return json.loads(reply.read())


class LoopbackHub(Control):
    """A running stand-in, its state under `tmp`. `user` has a token with the role write; see `environ`."""

    def __init__(self, tmp: Path, user: str, xet: bool, options: Mapping[str, Any]) -> None:
        self.tmp, self.user, self.xet = tmp, user, xet
        self.state = tmp / "hub-state"
        self.token = new_token()
        self._options = dict(options)
        if xet:
            self._options["xet_dir"] = tmp / "xet-cas"
        self._child: subprocess.Popen[str] | None = None
        super().__init__("")
        self.start()
        self.add_user(user, self.token)

    @property
    def environ(self) -> dict[str, str]:
        """What a client's environment needs, on top of the rest."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.tmp / "hf-home"),
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_XET_DATA_LOCAL_CAS_SCHEME": "local://",  # by default the product's own processes refuse it
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": self.token,
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    # the process

    def start(self) -> None:
        """Works after `stop` too: on the same port, with everything that was stored; faults are forgotten."""
        port = self.endpoint.rsplit(":", 1)[1] if self.endpoint else "0"
        command = [
            sys.executable,
            "-m",
            "tests.helpers.loopback_hub",
            "--port",
            port,
            "--state",
            str(self.state),
            "--until-eof",
        ]
        for name, value in self._options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self._child = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._child.stdout.readline())}"

    def stop(self) -> None:
        """A hard end: connections break, nothing is flushed."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


@contextmanager
def started(tmp: Path, *, user: str = "alice", xet: bool = False, **options: Any) -> Iterator[LoopbackHub]:
    """A stand-in for the duration of the block. `options`: see `hub.Options`."""
    hub = LoopbackHub(tmp, user, xet, options)
    try:
        yield hub
    finally:
        hub.stop()


def new_token() -> str:
    """A new one in the shape of the Hub's."""
    return "hf_" + secrets.token_hex(17)


def run_client(code: str, environ: Mapping[str, str], timeout: float = 120) -> tuple[int, str, str]:
    """Runs Python code in a child process with the caller's environment, without what concerns the Hub, plus `environ`.

    Returns its exit status, stdout and stderr.
    """
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("HF_")}
    kept = {name: value for name, value in kept.items() if not name.upper().endswith("_PROXY")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=_ROOT,
        env=kept | dict(environ),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


def _encoded(files: Mapping[str, bytes | str | None]) -> dict[str, str | None]:
    def encode(content: bytes | str) -> str:
        return base64.b64encode(content.encode() if isinstance(content, str) else content).decode()

    return {path: None if content is None else encode(content) for path, content in files.items()}
