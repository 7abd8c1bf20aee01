"""The image itself: its size, layers, labels and rights."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from appliance import __version__
from tests.image.project import CALLER, CANARY, IMAGE, REBUILD_BUDGET_SECONDS, ROOT, SIZE_BUDGET_BYTES, Project, docker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_no_layer_holds_the_token_that_was_there_while_building() -> None:
    assert CANARY not in docker("history", "--no-trunc", IMAGE) + docker("inspect", IMAGE)
    tail, wanted, read = b"", CANARY.encode(), 0
    with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE) as saved:
        assert saved.stdout
        while block := saved.stdout.read(1 << 24):
            assert wanted not in tail + block
            tail, read = block[-len(wanted) :], read + len(block)
    assert saved.returncode == 0
    assert read > 1e9


def test_no_root_and_nothing_writable_but_what_is_mounted(project: Project) -> None:
    script = (
        "id -u; for place in /x /usr/x /app/x /data/x; do touch $place 2>/dev/null && echo wrote $place; done; true"
    )
    code, said = project.compose("run", "--rm", "-T", "--entrypoint", "sh", "train", "-c", script)
    assert code == 0
    assert str(CALLER) in said.split()
    assert "wrote" not in said
    root = Project(project.folder, uid=0)  # whom no owner stops: only the read-only root does
    code, said = root.compose(
        "run", "--rm", "-T", "--entrypoint", "sh", "train", "-c", script.replace(" 2>/dev/null", "")
    )
    assert "wrote" not in said
    assert said.count("Read-only file system") == 4
    shown = docker(
        "run", "--rm", "--user", "0", "--entrypoint", "find", IMAGE, "/", "-xdev", "-perm", "/6000", "-type", "f"
    )
    assert shown.strip() == ""


def test_labels_and_environment() -> None:
    (inspected,) = json.loads(docker("image", "inspect", IMAGE))
    labels = inspected["Config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == __version__
    environment = dict(one.split("=", 1) for one in inspected["Config"]["Env"])
    assert "UNSLOTH_ALLOW_CPU" not in environment
    assert environment["UNSLOTH_DISABLE_STATISTICS"] == environment["DO_NOT_TRACK"] == "1"
    assert inspected["Config"]["User"] == "1000:1000"
    assert inspected["Config"]["StopSignal"] == "SIGTERM"


def test_size_and_time_to_rebuild() -> None:
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
    assert size <= SIZE_BUDGET_BYTES, f"{size / 1e9:.2f} GB"
    began = time.monotonic()
    path = ROOT / "appliance" / "__init__.py"
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(before + f"# {time.time()}\n", encoding="utf-8")
        docker("build", "--build-arg", "TORCH=cpu", "--tag", "finetune-appliance:rebuilt", ".")
    finally:
        path.write_text(before, encoding="utf-8")
    seconds = time.monotonic() - began
    docker("image", "rm", "finetune-appliance:rebuilt")
    assert seconds <= REBUILD_BUDGET_SECONDS, f"{seconds:.0f} s"
