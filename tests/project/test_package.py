"""The wheel holds what the program needs, and nothing else from the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_carries_its_data(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "appliance").rglob("*.py")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "datasets_src").rglob("*.py")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "appliance" / "recipe" / "shipped").glob("*.yaml")}
    for package in ("report", "web"):
        shown = (ROOT / "appliance" / package).glob("[!_]*/*.[jc]*")
        wanted |= {path.relative_to(ROOT).as_posix() for path in shown}
    wanted |= {"appliance/py.typed", "datasets_src/samples/shop_faq.csv"}
    assert wanted - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"appliance", "datasets_src"}

    target = tmp_path / "site"
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--target", target, wheel], check=True)
    code = "import sys; sys.argv = ['appliance', 'recipe', 'list']; from appliance.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(target)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "chatbot-cpu" in done.stdout


def test_the_pins_hold_no_address_and_no_build_tag() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)
    assert not any(sign in line for line in pins for sign in ("://", "+cpu", "+cu", "--hash", " @ "))
    assert {"torch==2.13.0", "trl==1.14.2", "transformers==5.17.0", "peft==0.21.2"} <= set(pins)
