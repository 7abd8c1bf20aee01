"""The image and compose.yaml as a user has them: built, run without a GPU, stopped, searched for secrets.

Needs a container engine: `make test-image`. Not part of `make test`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance import __version__
from appliance.process import files
from appliance.rundir import directory as rundir_directory
from tests.conftest import write_qa
from tests.helpers.models import tiny_base
from tests.project import test_readme

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
IMAGE = "finetune-appliance:cpu"
PROJECT = "finetune-appliance-test"  # a volume of its own: the user's models stay where they are
CALLER = os.getuid() or 1000  # root tests as a user would: uid 0 may write anything
HAS_DRIVER = Path("/proc/driver/nvidia/version").is_file()
CANARY = "hf_" + "Canary" * 6
STEPS = 6
FEW = [f"train.max_steps={STEPS}", "train.eval_every=3", "evaluate.max_new_tokens=8", "evaluate.max_rows=4"]
FEW.append("publish.min_stop_rate=0")  # so few steps teach no model to stop
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
        return self.compose("run", "--rm", "-T", "--env=HF_HUB_OFFLINE=1", service, *arguments)

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


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    docker("compose", "build", "train", environ={"TORCH": "cpu", "HF_TOKEN": CANARY})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = make_project(tmp_path_factory.mktemp("project"))
    yield made
    made.compose("down", "--volumes")


@pytest.fixture(scope="module")
def trained(project: Project) -> tuple[Project, str]:
    """The project after `docker compose run --rm train`, and what that said."""
    code, said = project.train()
    assert code == 0, said[-3000:]
    return project, said


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_whole_way_leaves_everything_to_its_owner(trained: tuple[Project, str]) -> None:
    project, said = trained
    run = project.folder / "runs" / "demo"
    for name in ("report.html", "prepare/rows.csv", "train/adapter/adapter_model.safetensors", "merge/proof.json"):
        assert (run / name).is_file(), name
    assert files.read_json(run / "merge" / "proof.json")["passed"]
    assert {path.stat().st_uid for path in run.rglob("*")} == {CALLER}
    assert "report         runs/demo/report.html" in said  # a path of the host
    assert "model.id" in said.split("check")[0]  # what was decided, and by what
    assert "APPLIANCE_MODEL__ID" in said


def test_a_second_call_skips_and_the_csv_is_as_it_was(trained: tuple[Project, str]) -> None:
    project, _ = trained
    before = sha256(project.folder / "data" / "train.csv")
    code, said = project.train()
    assert code == 0
    assert said.count("already done") == len(rundir_directory.STAGES)
    assert sha256(project.folder / "data" / "train.csv") == before
    code, said = project.run("publish")
    assert code == 0, said


def test_another_owner(tmp_path: Path) -> None:
    other = make_project(tmp_path / "other", uid=CALLER + 234)
    try:
        code, said = other.train("name=other")
        assert code == 0, said[-3000:]
        listed = docker(
            "run", "--rm", "--user=0", f"--volume={other.folder}:/it", "--entrypoint=find", IMAGE, "/it/runs",
            "-printf", "%u:%g\n",
        )  # fmt: skip
        assert set(listed.split()) == {f"{CALLER + 234}:{CALLER + 234}"}
    finally:
        give(other.folder, os.getuid(), "700")


def test_the_cache_is_kept_and_whose_it_is_matters(tmp_path: Path) -> None:
    """The demo's base is made in the volume once; a later uid is told what to do about it."""
    made = make_project(tmp_path / "cached")
    made.environ |= {"MODEL": "", "COMPOSE_PROJECT_NAME": PROJECT + "-cache"}
    try:
        began = time.monotonic()
        code, said = made.run("appliance", "check", "demo")
        assert code == 0, said[-3000:]
        first = time.monotonic() - began
        began = time.monotonic()
        code, said = made.run("appliance", "check", "demo", "--set", "name=again")
        assert code == 0, said[-3000:]
        assert time.monotonic() - began < first / 2
        code, said = made.run("appliance", "status", "--json")
        assert code == 0, said[-3000:]
        assert '"again"' in said
        script = "mkdir -p $HF_HOME/hub && touch $HF_HOME/hub/x $TRITON_CACHE_DIR && id -u"
        code, said = made.compose("run", "--rm", "-T", "--entrypoint", "sh", "train", "-c", script)
        assert code == 0, said
        made.uid = CALLER + 1
        code, said = made.run("doctor")
        assert code == 4, said
        assert "docker volume rm finetune-appliance_cache" in " ".join(said.split())
    finally:
        made.compose("down", "--volumes")


def test_a_csv_is_made_out_of_another_file(tmp_path: Path) -> None:
    """The one service that may write data/."""
    made = make_project(tmp_path / "made")
    if os.getuid() != CALLER:
        give(made.folder / "data", CALLER)
    lines = "".join(f"{name} 있나요?|{name} 있어요.\n" for name in ("사과", "배", "감"))
    (made.folder / "data" / "pairs.txt").write_text(lines, encoding="utf-8")
    code, said = made.run("dataset", "delimited", "/data/pairs.txt", "/data/pairs.csv")
    assert code == 0, said
    code, said = made.run("appliance", "check", "/data/pairs.csv", "--json")
    assert code == 0, said
    assert (made.folder / "data" / "pairs.csv").read_text(encoding="utf-8").count("있어요.") == 3


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


def test_the_quickstart_as_typed(tmp_path: Path) -> None:
    """README's three lines, in a folder that belongs to whoever types them."""
    made = make_project(tmp_path / "typed", uid=os.getuid())
    shutil.copy(ROOT / ".env.example", made.folder)
    data = "data: {csv: data/train.csv}"
    (made.folder / "data" / "recipe.yaml").write_text(
        f"name: mine\nmodel: {{id: /data/base, load_in_4bit: false}}\n{data}\n"
        f"train: {{max_steps: {STEPS}, eval_every: 3, optimizer: adamw_torch}}\n"
        "evaluate: {max_new_tokens: 8, max_rows: 4}\npublish: {min_stop_rate: 0.0}\n",
        encoding="utf-8",
    )
    environ = {"COMPOSE_PROJECT_NAME": PROJECT, "COMPOSE_FILE": "compose.yaml:compose.cpu.yaml", "TORCH": "cpu"}
    for command in test_readme.RUN_BY_IMAGE_TEST:
        done = subprocess.run(
            command, shell=True, cwd=made.folder, env=os.environ | environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert f"APP_UID={os.getuid()}\n" in (made.folder / ".env").read_text(encoding="utf-8")
    assert {path.stat().st_uid for path in (made.folder / "runs").rglob("*")} == {os.getuid()}
    assert (made.folder / "runs" / "mine" / "publish" / "release" / "model" / "model.safetensors").is_file()


def test_docker_stop_leaves_a_run_that_goes_on(project: Project) -> None:
    metrics = project.folder / "runs" / "stopped" / "train" / "metrics.jsonl"

    def steps() -> int:
        return metrics.read_text(encoding="utf-8").count('"loss"') if metrics.is_file() else 0

    def stopped_after(count: int) -> str:
        """What a training says that is stopped once it has done so many steps."""
        changes = [*FEW, "name=stopped", "train.max_steps=100000", "train.epochs=100000", "train.patience=100000"]
        settings = [part for one in ["data.csv=data/train.csv", *changes] for part in ("--set", one)]
        code, said = project.compose("run", "-d", "-T", "train", *settings)
        assert code == 0, said
        container = said.strip().splitlines()[-1]
        deadline = time.monotonic() + 120
        while steps() < count:
            assert time.monotonic() < deadline, docker("logs", container)
            time.sleep(0.2)
        docker("stop", container)
        log = docker("logs", container)
        assert docker("wait", container).strip() == "143", log
        docker("rm", container)
        return log

    assert "the same command continues from there" in stopped_after(4)
    done = steps()
    again = stopped_after(done + 4)
    assert "continuing from step" in again
    assert f"(checkpoint-{done})" in again


@pytest.mark.parametrize("token_in", ["environment", "file"])
def test_a_token_is_found_nowhere(trained: tuple[Project, str], token_in: str, tmp_path: Path) -> None:
    project, said = trained
    if token_in == "file":
        (tmp_path / "token").write_text(CANARY, encoding="utf-8")
        project.environ["HF_TOKEN_FILE"] = str(tmp_path / "token")
        project.environ["HF_TOKEN"] = ""
    code, doctor = project.run("doctor")
    assert code in (0, 4)
    assert f"set in HF_TOKEN{'_FILE' if token_in == 'file' else ''}" in " ".join(doctor.split())  # it arrives
    assert CANARY not in said + doctor
    for path in (project.folder / "runs").rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


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


def test_doctor_explains_a_machine_without_a_gpu(project: Project) -> None:
    code, said = project.run("doctor", "--json")
    findings = {one["what"]: one for one in json.loads(said[said.index("[") : said.rindex("]") + 1])}
    assert code == 0, said
    driver = next(one for what, one in findings.items() if "driver" in what)
    if HAS_DRIVER:  # of the host; this service was given none of its devices
        assert findings["GPU"]["verdict"] == "ok"
        assert "nvidia-smi" in findings["GPU"]["fix"]
        return
    assert driver["verdict"] == "warning"
    assert "compose.cpu.yaml" in driver["fix"]
    code, said = Project(project.folder, environ={"COMPOSE_FILE": "compose.yaml"}).train()
    assert code != 0
    assert "could not select device driver" in said  # the engine's own words; README and doctor explain them


def test_what_is_missing_is_said(project: Project, tmp_path: Path) -> None:
    code, said = project.run("train", "--set", "data.csv=data/other.csv", "--set", "name=other")
    assert code == 3, said
    assert "the folder data/ is /data" in said
    locked = make_project(tmp_path / "locked")
    give(locked.folder / "runs", 0)
    code, said = locked.train()
    assert code == 4, said
    assert f"sudo chown -R {CALLER}:{CALLER} ./runs" in said
    shutil.rmtree(locked.folder / "data")
    code, said = locked.train()
    assert code != 0
    assert "does not exist" in said  # never made by the engine, as root


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
