"""`python -m benchmarks.peers`: what a token costs in training, here and in other trainers, on the same rows.

Every trainer runs unmodified under one probe (probe.py), with one thread, in a process of its own; all of them in turn,
then all of them again, so that a busy machine hits each alike. The figure is processor time per real token between
the second optimizer step and the last: padding is not counted, start-up neither. Other programs slow a core through
its shared caches and threads, so only figures of one call may be compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.prompt import format as prompt_format
from benchmarks.peers import trainers, workload

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


@dataclass(frozen=True)
class Measured:
    """One run of one trainer. `losses`: of its steps, if it prints them as our scripts do."""

    micros_per_token: float
    padding: float  # share of what was computed on
    losses: dict[int, float]


class DidNotRun(Exception):
    """A trainer ended with an error, or saw too few steps."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        workload.write(folder)
        base = options.base or workload.make_base(folder / "base", _texts(folder))
        _write_rows(base, folder, options.steps)
        runs: dict[str, list[Measured]] = {name: [] for name in options.trainers}
        faults: dict[str, str] = {}
        loads = [os.getloadavg()[0]]
        try:
            for repeat, name in itertools.product(range(options.repeats), options.trainers):
                if name in faults:
                    continue
                steps = min(options.steps, WARM_UP_STEPS + 2) if name == "max_length" else options.steps
                try:
                    runs[name].append(_measure(name, base, folder, folder / f"{name}-{repeat}", steps, options))
                except DidNotRun as error:
                    faults[name] = str(error)
                loads.append(os.getloadavg()[0])
                sys.stderr.write(f"{repeat} {name}: {faults.get(name) or runs[name][-1]}\n")
        except KeyboardInterrupt:
            sys.stderr.write("stopped; the table holds the runs so far\n")
    sys.stdout.write("\n".join(_table(runs, faults, loads, options)) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
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


def _measure(name: str, base: Path, folder: Path, work: Path, steps: int, options: argparse.Namespace) -> Measured:
    work.mkdir()
    record, log = work / "steps.json", work / "log.txt"
    python = trainers.python_of(name, options.environments.absolute())
    pad = json.loads((base / "config.json").read_text(encoding="utf-8")).get("pad_token_id") or 0
    environ = _environ(work)
    if name in trainers.IN_PEER_ENVIRONMENT:
        del environ["PYTHONPATH"]
    command = [python, str(trainers.HERE / "probe.py"), str(record), str(pad)]
    command += trainers.command(name, base, folder, work, steps)
    with log.open("w", encoding="utf-8") as handle:
        ended = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, env=environ, cwd=work, check=False)
    text = log.read_text(encoding="utf-8", errors="replace")
    seen = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    if ended.returncode or len(seen) < steps:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        raise DidNotRun(f"exit code {ended.returncode}, {len(seen)} of {steps} steps: {last[:300]}")
    return figure(seen, steps, text)


def figure(seen: Sequence[Mapping[str, float]], steps: int, text: str) -> Measured:
    """From the probe's records and what the trainer printed."""
    first, last_step = seen[WARM_UP_STEPS - 1], seen[steps - 1]
    tokens = last_step["tokens"] - first["tokens"]
    positions = last_step["positions"] - first["positions"]
    losses = {int(step): float(loss) for step, loss in re.findall(r"^loss (\d+) (\S+)$", text, re.MULTILINE)}
    return Measured((last_step["cpu"] - first["cpu"]) / tokens * 1e6, 1 - tokens / positions, losses)


def _table(
    runs: dict[str, list[Measured]], faults: dict[str, str], loads: list[float], options: argparse.Namespace
) -> list[str]:
    lines = [
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, one thread; "
        f"load {min(loads):.1f} to {max(loads):.1f}; {options.steps} steps a run",
        "",
        "| trainer | versions | CPU-µs a real token: median (range) | runs | ours to it | padding |",
        "|---|---|---|---|---|---|",
    ]
    for name, seen in runs.items():
        title, versions = trainers.TITLES[name], _versions(name, options)
        if name in faults or not seen:
            lines.append(f"| {title} | {versions} | did not run: {faults.get(name)} | – | – | – |")
            continue
        figures = [one.micros_per_token for one in seen]
        median = statistics.median(figures)
        spread = f"{median:.0f} ({min(figures):.0f}-{max(figures):.0f})"
        padding = statistics.median(one.padding for one in seen)
        pairs = zip(runs.get("ours", []), seen, strict=False)  # of one round: under about the same load
        ratios = [ours.micros_per_token / one.micros_per_token for ours, one in pairs]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "–"
        lines.append(f"| {title} | {versions} | {spread} | {len(seen)} | {ratio} | {padding:.1%} |")
    if runs.get("ours") and runs.get("trl_our_rows"):
        mine, theirs = runs["ours"][0].losses, runs["trl_our_rows"][0].losses
        lines += ["", f"Loss of the first step, ours and trl's on the same rows: {mine[1]:.6f} and {theirs[1]:.6f}."]
    return lines


def _versions(name: str, options: argparse.Namespace) -> str:
    own = {"llamafactory": ["llamafactory"], "axolotl": ["axolotl"], "max_length": []}.get(name, ["trl"])
    code = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    python = trainers.python_of(name, options.environments.absolute())
    wanted = [*own, "transformers", "peft", "torch"]
    return subprocess.run([python, "-c", code, *wanted], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
