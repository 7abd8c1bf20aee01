"""The image and a project folder as a user has them: docker and docker compose as functions."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import write_qa
from tests.helpers.models import tiny_base

ROOT = Path(__file__).parents[2]
IMAGE = "finetune-appliance:cpu"
# A volume of its own: the user's models stay where they are. One for each of pytest's workers.
PROJECT = "-".join(filter(None, ["finetune-appliance-test", os.environ.get("PYTEST_XDIST_WORKER")]))
CALLER = os.getuid() or 1000  # root tests as a user would: uid 0 may write anything
HAS_DRIVER = Path("/proc/driver/nvidia/version").is_file()
CANARY = "hf_" + "Canary" * 6
STEPS = 6
FEW = [f"train.max_steps={STEPS}", "train.eval_every=3", "evaluate.max_new_tokens=8", "evaluate.max_rows=4"]
FEW.append("publish.min_stop_rate=0")  # so few steps teach no model to stop
ONE_THREAD = "--env=OMP_NUM_THREADS=1"  # two workers share two cores, and threads that wait for one another spin
SIZE_BUDGET_BYTES = 3.0e9
REBUILD_BUDGET_SECONDS = 20


def docker(*command: str, check: bool = True, environ: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """stdout and stderr of a docker command."""
    done = subprocess.run(
        ["docker", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | (environ or {}),
    )
    said = done.stdout + done.stderr
    assert not check or done.returncode == 0, said[-3000:]
    return said


@dataclass
class Project:
    """A folder with compose.yaml, data/ and runs/, as after the README's quickstart."""

    folder: Path
    uid: int = CALLER
    environ: dict[str, str] = field(default_factory=dict)

    def compose(self, *command: str) -> tuple[int, str]:
        """(exit code, stdout and stderr)."""
        settings = {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_FILE": "compose.yaml:compose.cpu.yaml",
            "TORCH": "cpu",
            "APP_UID": str(self.uid),
            "APP_GID": str(self.uid),
            "RECIPE": "demo",
            "MODEL": "/data/base",
            "HF_TOKEN": CANARY,
        }
        done = subprocess.run(
            ["docker", "compose", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=os.environ | settings | self.environ,
        )
        return done.returncode, done.stdout + done.stderr

    def run(self, service: str, *arguments: str) -> tuple[int, str]:
        """Nothing here touches the network, `doctor` included."""
        return self.compose("run", "--rm", "-T", "--env=HF_HUB_OFFLINE=1", ONE_THREAD, service, *arguments)

    def train(self, *settings: str) -> tuple[int, str]:
        chosen = [part for one in ["data.csv=data/train.csv", *FEW, *settings] for part in ("--set", one)]
        return self.run("train", *chosen)


def give(folder: Path, uid: int, mode: str = "755") -> None:
    """Changes the owner by way of the engine: whoever runs these tests need not be root."""
    script = f"chown -R {uid}:{uid} /it && chmod {mode} /it"
    docker("run", "--rm", "--user=0", f"--volume={folder}:/it", "--entrypoint=sh", IMAGE, "-c", script)


def make_project(folder: Path, uid: int = CALLER) -> Project:
    for name in ("data", "runs"):
        (folder / name).mkdir(parents=True)
    for name in ("compose.yaml", "compose.cpu.yaml"):
        shutil.copy(ROOT / name, folder)
    names = ["사과", "배", "감", "귤", "밤"]
    write_qa(folder / "data" / "train.csv", [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(60)])
    tiny_base(folder / "data" / "base", short_prompts=True)
    for path in (folder / "data").rglob("*"):  # safetensors writes for the owner only
        path.chmod(0o755 if path.is_dir() else 0o644)
    if uid != os.getuid():
        give(folder / "runs", uid)
    for path in [folder, *folder.parents]:  # pytest's own folders are for their owner only
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o055)
    return Project(folder, uid)
