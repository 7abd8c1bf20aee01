"""In place of `appliance` in a trial of a test: leaves what a run leaves, in milliseconds, and trains nothing.

The val loss falls from 4 towards the distance of the learning rate from 1e-3, in decades. Every command notes in
`calls.txt` beside the run directory that it began, and what it found there. The folder `how` beside it says what is to
go wrong: `slow` (seconds of a step), `fails-NAME` (holding an exit code), `waits-NAME` (step after which it waits),
`stops-slowly-NAME` (seconds from the signal to its end).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from appliance.rundir import run_json
from appliance.rundir.directory import RunDir

EVERY, STEPS = 10, 90


def main() -> int:
    command, path = sys.argv[1], Path(sys.argv[2])
    settings = dict(sys.argv[i + 1].split("=", 1) for i, word in enumerate(sys.argv) if word == "--set")
    run_dir, how = RunDir(path), path.parent.parent / "how"
    done = [stage for stage in ("prepare", "train", "evaluate") if run_dir.record(stage)]
    with (path.parent.parent / "calls.txt").open("a", encoding="utf-8") as handle:
        gpu, threads = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")
        line = {"command": command, "run": path.name, "settings": settings, "found": done, "gpu": gpu}
        handle.write(json.dumps(line | {"pid": os.getpid(), "threads": threads}) + "\n")
    if command == "prepare" and not run_dir.record("prepare"):
        _prepare(run_dir)
    if command == "train":
        with run_dir.lock():
            return _train(run_dir, settings, how)
    if command == "run":
        run_dir.begin("evaluate", {})
        run_dir.finish("evaluate", {}, "evaluated")
    return 0


def _prepare(run_dir: RunDir) -> None:
    base = dict.fromkeys(("id", "public_id", "identity"), "base")
    content = {"created": "", "base": base, "csv": {"typed": "rows.csv", "sha256": "0"}}
    run_json.write(run_dir.path, content)
    folder = run_dir.begin("prepare", {})
    summary = {"train": 240, "val": 30, "test": 30}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    for side in ("train", "val", "test"):
        (folder / f"{side}.csv").write_text("row,instruction,input,output\n", encoding="utf-8")
    rows = "".join(f"{row},g{row}\n" for row in range(30))
    (folder / "val_groups.csv").write_text(f"row,group\n{rows}", encoding="utf-8")
    run_dir.finish("prepare", {}, "prepared")


def _train(run_dir: RunDir, settings: dict[str, str], how: Path) -> int:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    if (failing := how / f"fails-{run_dir.path.name}").exists():
        sys.stderr.write("Error: out of memory\n")
        return int(failing.read_text(encoding="utf-8"))
    folder, kept = run_dir.stage_dir("train"), []
    if (folder / "metrics.jsonl").exists():
        kept = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    run_dir.begin("train", {}, keep=("metrics.jsonl",))
    rate = float(settings["train.learning_rate"])
    every = int(settings.get("train.eval_every", EVERY))
    waits = how / f"waits-{run_dir.path.name}"
    slow = float((how / "slow").read_text(encoding="utf-8")) if (how / "slow").exists() else 0.0
    loss = 4.0
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as handle:
        for step in range(STEPS + 1):
            loss = abs(math.log10(rate) + 3) + 0.5 + 3 * 0.97**step
            if step % every or step < len(kept) * every:
                continue
            handle.write(json.dumps({"step": step, "val_loss": loss}) + "\n")
            handle.flush()
            time.sleep(slow)
            while waits.exists() and step >= int(waits.read_text(encoding="utf-8")) and not stopped:
                time.sleep(0.05)
            if stopped:
                slowly = how / f"stops-slowly-{run_dir.path.name}"
                time.sleep(float(slowly.read_text(encoding="utf-8")) if slowly.exists() else 0)
                (folder / "saved").write_text(str(step), encoding="utf-8")
                sys.stderr.write("Error: stopped by SIGTERM\n")
                return 128 + stopped[0]
    fit = {"steps": STEPS, "best_step": STEPS, "best_val_loss": loss, "stopped_early": False}
    (folder / "fit.json").write_text(json.dumps(fit), encoding="utf-8")
    run_dir.finish("train", {}, "trained")
    return 0


if __name__ == "__main__":
    sys.exit(main())
