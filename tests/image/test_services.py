"""The quickstart as typed, and what the services besides `train` do and refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.base_model import demo as base_model_demo
from tests.image.project import (
    CALLER,
    FEW,
    HAS_DRIVER,
    IMAGE,
    ONE_THREAD,
    PROJECT,
    ROOT,
    STEPS,
    Project,
    docker,
    give,
    make_project,
)  # fmt: skip
from tests.project import test_readme

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


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
    # a cache of its own: what root writes there is denied to the other tests
    made.environ["COMPOSE_PROJECT_NAME"] = PROJECT + "-typed"
    environ = {**made.environ, "COMPOSE_FILE": "compose.yaml:compose.cpu.yaml", "TORCH": "cpu"}
    try:
        for command in test_readme.RUN_BY_IMAGE_TEST:
            done = subprocess.run(
                command,
                shell=True,
                cwd=made.folder,
                env=os.environ | environ,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
    finally:
        made.compose("down", "--volumes")
    assert f"APP_UID={os.getuid()}\n" in (made.folder / ".env").read_text(encoding="utf-8")
    assert {path.stat().st_uid for path in (made.folder / "runs").rglob("*")} == {os.getuid()}
    assert (made.folder / "runs" / "mine" / "publish" / "release" / "model" / "model.safetensors").is_file()


def test_the_cache_is_kept_and_whose_it_is_matters(tmp_path: Path) -> None:
    """The demo's base is made in the volume once; a later uid is told what to do about it.

    In two steps of training, by a demo.py mounted over the image's: how well it learns is tested without a container.
    """
    made = make_project(tmp_path / "cached")
    made.environ |= {"MODEL": "", "COMPOSE_PROJECT_NAME": PROJECT + "-cache"}
    demo = made.folder / "demo.py"
    demo.write_text(
        re.sub(r"(?m)^_STEPS = \d+$", "_STEPS = 2", Path(base_model_demo.__file__).read_text("utf-8")), "utf-8"
    )
    demo.chmod(0o644)
    there = "import appliance; print(appliance.__path__[0])"
    package = docker("run", "--rm", "--entrypoint=python", IMAGE, "-c", there).strip()
    mounted = f"--volume={demo}:{package}/base_model/demo.py:ro"
    check = (mounted, "--env=HF_HUB_OFFLINE=1", ONE_THREAD, "appliance", "check", "demo")
    try:
        code, said = made.compose("run", "--rm", "-T", *check)
        assert code == 0, said[-3000:]
        assert "base model: step 2 of 2" in said
        code, said = made.compose("run", "--rm", "-T", *check, "--set", "name=again")
        assert code == 0, said[-3000:]
        assert "base model: step" not in said
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


def test_a_fleet_of_two_csvs(tmp_path: Path) -> None:
    """Ray starts without a root user, capabilities or a writable file system; a wrong CSV does not stop the other."""
    made = make_project(tmp_path / "fleet")
    made.environ["COMPOSE_PROJECT_NAME"] = PROJECT + "-fleet"
    wrong = made.folder / "data" / "틀림.csv"
    wrong.write_text("foo,bar\n1,2\n", encoding="utf-8")
    wrong.chmod(0o644)
    settings = [part for one in FEW for part in ("--set", one)]
    try:
        code, said = made.run("fleet", "--cores", "1", "--recipe", "chatbot-cpu", *settings)
    finally:
        made.compose("down", "--volumes")
    assert code == 3, said[-3000:]
    assert "/data/틀림.csv" in said
    assert "no column 'instruction'" in said
    assert "runs 2/2" in said
    runs = made.folder / "runs"
    assert {path.name for path in runs.iterdir()} == {"train", "틀림", "fleet.log"}
    assert (runs / "train" / "publish" / "release" / "model" / "model.safetensors").is_file()


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
