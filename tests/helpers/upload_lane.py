"""A stand-in Hub and a client process that does one upload after another, shared by the upload tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from appliance.errors import HubError
from appliance.hub import upload
from appliance.hub.client import Limits
from appliance.hub.upload_child import Pushed
from appliance.process import files as process_files
from appliance.release import gates
from tests.helpers import loopback_hub
from tests.helpers.loopback_hub import LoopbackHub

AGAIN = "`appliance publish runs/my-shop` continues"
# hf_xet has tries and waits of its own, which nothing but its environment changes.
_QUICK_XET = {"HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2"}
_SERVANT = """
import json, sys
from appliance.hub import upload_child
from appliance.process import known_secrets
for line in sys.stdin:
    known_secrets.forget()  # of the upload before: a process learns one token, and masks each that it knows
    upload_child.serve(line, lambda said: print(json.dumps(said), flush=True))
    print(json.dumps({"end": True}), flush=True)
"""


@dataclass
class Lane:
    """`told`: everything the client reported about its last upload."""

    hub: LoopbackHub
    client: subprocess.Popen[str]
    tmp: Path
    told: list[dict[str, Any]] = field(default_factory=list)

    def job(self, release: Path, repo_id: str, *, limits: Limits, **changes: Any) -> dict[str, Any]:
        """What the client reads from its standard input."""
        repo_type = changes.get("repo_type", "model")
        expected = changes.pop("expected", None) or manifest(release)
        files = upload.contents(release, repo_type, expected, partial(gates.may_be_released, repo_type))
        job = {
            "folder": str(release),
            "repo_id": repo_id,
            "repo_type": repo_type,
            "visibility": "private",
            "token": self.hub.token,
            "into_existing": False,
            "message": "Release of shop",
            "release": {path: asdict(content) for path, content in files.items()},
            "limits": asdict(limits),
            "again": AGAIN,
        }
        return job | changes

    def publish(self, release: Path, repo_id: str, *, limits: Limits, **changes: Any) -> Pushed:
        """As `upload.publish`, but without a process of its own and its deadline."""
        say = changes.pop("say", None)
        job = self.job(release, repo_id, limits=limits, **changes)
        assert self.client.stdin
        assert self.client.stdout
        self.client.stdin.write(json.dumps(job) + "\n")
        self.client.stdin.flush()
        self.told = []
        for line in self.client.stdout:
            said = json.loads(line)
            if said.get("end"):
                break
            self.told.append(said)
            if say and "say" in said:
                say(said["say"])
        last = self.told[-1]
        if "pushed" in last:
            return Pushed(**last["pushed"])
        message, hint = last["error"]
        raise HubError(message, hint=hint)


def manifest(folder: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, process_files.sha256_of(path)) for path in files}


def write_release(folder: Path) -> Path:
    """A release that no Hub has seen: one large file and two small ones."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(200_000))
    (folder / "config.json").write_text(json.dumps({"model_type": folder.name}), encoding="utf-8")
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n# {folder.name} 한국어\n", encoding="utf-8")
    return folder


@contextmanager
def opened(tmp: Path, *, xet: bool = False) -> Iterator[Lane]:
    tmp.mkdir(exist_ok=True)
    with loopback_hub.started(tmp, xet=xet) as hub, (tmp / "client.log").open("w") as log:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environ |= hub.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **_QUICK_XET}
        del environ["HF_TOKEN"]
        command = [sys.executable, "-c", _SERVANT]
        client = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environ
        )
        try:
            yield Lane(hub, client, tmp)
        finally:
            client.kill()
            client.communicate()
