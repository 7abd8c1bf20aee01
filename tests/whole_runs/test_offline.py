"""Once the base is here the network can be cut: everything up to the release is made with sockets blocked.

What is blocked is told by Python's own audit events, in the command and in every process that it starts; each try is
written down, also one whose failure a library would swallow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.process import files
from appliance.rundir.directory import STAGES
from tests.conftest import write_qa
from tests.helpers import loopback_hub, warm

SITECUSTOMIZE = """
import os, socket, sys, traceback

def cut(event, args):
    if event == "socket.connect" and args[0].family in (socket.AF_INET, socket.AF_INET6) \\
            or event in ("socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["TRIES_OF_NETWORK"], "a") as handle:
            handle.write(f"{event} {args} {sys.argv}\\n" + "".join(traceback.format_stack(limit=12)))
        raise OSError(101, "Network is unreachable")

sys.addaudithook(cut)
with open(os.environ["TRIES_OF_NETWORK"] + ".processes", "a") as handle:
    handle.write(f"{os.getpid()} {sys.orig_argv}\\n")
"""
RECIPE = """name: shop
engine: transformers
model: {{id: maker/tiny, load_in_4bit: false}}
data: {{csv: {csv}, test_fraction: 0.2}}
tuning: {{r: 4, alpha: 8}}
train: {{max_steps: 8, micro_batch_size: 8, gradient_accumulation_steps: 1, learning_rate: 1e-2, optimizer: adamw_torch,
         eval_every: 4}}
evaluate: {{max_new_tokens: 8}}
publish: {{min_stop_rate: 0}}
"""


@pytest.mark.slow
def test_a_run_is_made_without_a_network_once_the_base_is_here(base_dir: Path, tmp_path: Path) -> None:
    names = ["사과", "배", "감", "귤", "밤"]
    csv = write_qa(tmp_path / "train.csv", [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)])
    (tmp_path / "shop.yaml").write_text(RECIPE.format(csv=csv), encoding="utf-8")
    run = tmp_path / "runs" / "shop"
    with loopback_hub.started(tmp_path / "hub") as hub:
        hub.add_repo("maker/tiny", private=False, files={path.name: path.read_bytes() for path in base_dir.iterdir()})
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environ = {**kept, **hub.environ, "APPLIANCE_CACHE_DIR": str(tmp_path / "cache")}
        assert hub.environ["HF_HUB_OFFLINE"] == "0"  # nobody is told that there is no network
        checked = warm.typed("appliance check shop.yaml", cwd=tmp_path, env=environ)
        assert checked.returncode == 0, checked.stderr
        prepared = warm.typed("appliance prepare runs/shop", cwd=tmp_path, env=environ)  # fetches the base
        assert prepared.returncode == 0, prepared.stderr
        asked = len(hub.log())
    commit = files.read_json(run / "run.json")["base"]["revision"]

    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    tries = tmp_path / "tries.txt"
    environ |= {"PYTHONPATH": str(tmp_path / "cut"), "TRIES_OF_NETWORK": str(tries)}
    probe = [sys.executable, "-c", "import socket; socket.socket().connect(('127.0.0.1', 9))"]
    assert subprocess.run(probe, env=environ, capture_output=True, check=False).returncode
    assert "socket.connect" in tries.read_text(encoding="utf-8")  # the block holds
    tries.unlink()

    command = [sys.executable, "-m", "appliance", "run", str(run)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not tries.exists(), tries.read_text(encoding="utf-8")
    assert f"at commit {commit}, fetched before: the Hub is not asked" in done.stderr
    assert [stage for stage in STAGES if not (run / stage / "stage.json").is_file()] == []
    assert files.read_json(run / "merge" / "proof.json")["passed"]
    assert (run / "publish" / "release" / "model" / "model.safetensors").is_file()
    processes = Path(f"{tries}.processes").read_text(encoding="utf-8")
    assert "appliance.weights.proof_child" in processes  # the proof's own process was cut off as well
    assert asked
