"""`python -m benchmarks.peers`: what a token costs in training, here and in other trainers, on the same rows.

Every trainer runs unmodified under one probe (probe.py), with one thread, in a process of its own. They take turns, one
optimizer step each, so that a busy machine hits all alike. The figure is processor time per real token: padding is not
counted, and neither are start-up and the first two steps. Other programs slow a core through its shared caches and
threads, so only figures of one call may be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from appliance.prompt import format as prompt_format
from benchmarks.peers import trainers, turns, workload
from benchmarks.peers.turns import Ended, Trainer

WARM_UP_STEPS = 2
# nothing leaves the machine, and nothing is asked of the Hub
QUIET = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "WANDB_MODE": "disabled",
    "DISABLE_VERSION_CHECK": "1",
}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        workload.write(folder)
        base = options.base or workload.make_base(folder / "base", _texts(folder))
        _write_rows(base, folder, options.steps)
        running: dict[str, Trainer] = {}
        faults: dict[str, str] = {}
        for name in options.trainers:
            try:
                running[name] = _start(name, base, folder, options)
            except (Ended, subprocess.CalledProcessError) as error:
                faults[name] = str(error)
            sys.stderr.write(f"{name}: {faults.get(name, 'started')}\n")
        loads = [os.getloadavg()[0]]
        for step in range(2, options.steps + 1):
            for name, trainer in running.items():
                if name not in faults and step <= _steps_of(name, options):
                    try:
                        trainer.take_turn()
                    except Ended as error:
                        faults[name] = str(error)
            loads.append(os.getloadavg()[0])
            sys.stderr.write(f"step {step} of {options.steps}\n")
        for trainer in running.values():
            trainer.end()
        sys.stdout.write("\n".join(_table(running, faults, loads, options)) + "\n")


def _steps_of(name: str, options: argparse.Namespace) -> int:
    """Padding to the maximum costs ten times as much: fewer of its steps are enough."""
    return min(options.steps, WARM_UP_STEPS + 3) if name == "max_length" else int(options.steps)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--steps", type=int, default=27)  # 25 counted: two pools of 100 rows that trl groups
    parser.add_argument("--base", type=Path, help="a model folder, instead of the small one made here")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="where the peers' are made")
    parser.add_argument("trainers", nargs="*", choices=[[], *trainers.TITLES], default=[])
    options = parser.parse_args()
    options.trainers = options.trainers or list(trainers.TITLES)
    options.base = options.base and options.base.absolute()
    return options


def _texts(folder: Path) -> list[str]:
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    frame = prompt_format.render(prompt_format.chat_template("alpaca"), prompt_format.user_message(""))
    # a real tokenizer knows the words of the frame
    return [frame] * 100 + [f" {text}" for row in rows for text in (row["instruction"], row["output"])]


def _write_rows(base: Path, folder: Path, steps: int) -> None:
    work = folder / "rows"
    work.mkdir()
    settings = {"kind": "rows", "base": str(base), "csv": str(folder / "rows.csv"), "folder": str(folder)}
    path = work / "settings.json"
    path.write_text(json.dumps({**settings, "work": str(work), "steps": steps}), encoding="utf-8")
    subprocess.run([sys.executable, str(trainers.HERE / "ours.py"), str(path)], check=True, env=_environ(work))


def _environ(work: Path) -> dict[str, str]:
    root = str(trainers.HERE.parents[1])
    return {**os.environ, **QUIET, "PYTHONPATH": root, "HF_HOME": str(work / "hf")}  # cold caches, as on a first run


def _start(name: str, base: Path, folder: Path, options: argparse.Namespace) -> Trainer:
    """Raises Ended; CalledProcessError: its environment cannot be made."""
    work = folder / name
    work.mkdir()
    environ = _environ(work)
    if name in trainers.IN_PEER_ENVIRONMENT:
        del environ["PYTHONPATH"]
    pad = json.loads((base / "config.json").read_text(encoding="utf-8")).get("pad_token_id") or 0
    python = trainers.python_of(name, options.environments.absolute())
    command = trainers.command(name, base, folder, work, _steps_of(name, options))
    return turns.start(python, command, pad, work, environ)


def _table(
    running: dict[str, Trainer], faults: dict[str, str], loads: list[float], options: argparse.Namespace
) -> list[str]:
    lines = [
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, one thread; "
        f"load {min(loads):.1f} to {max(loads):.1f}; {options.steps - WARM_UP_STEPS} steps in turn",
        "",
        "| trainer | versions | CPU-µs a real token (each third of the steps) | ours to it | padding |",
        "|---|---|---|---|---|",
    ]
    ours = turns.figure(running["ours"].steps, WARM_UP_STEPS).micros_per_token if "ours" in running else math.nan
    for name in options.trainers:
        cells = [trainers.TITLES[name], _versions(name, options)]
        if name in faults:
            cells += [f"did not run: {faults[name]}", "–", "–"]
        else:
            seen = turns.figure(running[name].steps, WARM_UP_STEPS)
            thirds = ", ".join(f"{third:.0f}" for third in seen.thirds)
            ratio = f"{ours / seen.micros_per_token:.2f}"
            cells += [f"{seen.micros_per_token:.0f} ({thirds})", ratio, f"{seen.padding:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    if {"ours", "trl_our_rows"} <= running.keys():
        ours_losses, theirs = (running[name].losses() for name in ("ours", "trl_our_rows"))
        lines += ["", f"Loss of step 1, ours and trl's on the same rows: {ours_losses[1]:.6f}, {theirs[1]:.6f}"]
    return lines


def _versions(name: str, options: argparse.Namespace) -> str:
    own = {"llamafactory": ["llamafactory"], "axolotl": ["axolotl"], "max_length": []}.get(name, ["trl"])
    code = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    python = trainers.python_of(name, options.environments.absolute())
    wanted = [*own, "transformers", "peft", "torch"]
    return subprocess.run([python, "-c", code, *wanted], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
