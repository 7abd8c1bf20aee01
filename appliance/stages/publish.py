"""Builds release/: exactly what goes to the Hub. Nothing is released that the proof or the verdict speaks against."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from appliance import card, rundir
from appliance.errors import GateRefused
from appliance.hub import Base
from appliance.recipe import PublishSection


def run(*, name: str, publish: PublishSection, base: Base, prompt_name: str, run_path: Path, stage_dir: Path) -> str:
    """Writes release/model, release/adapter and hub.json; returns the summary.

    Raises GateRefused: the merged model is not proven, the verdict is `worse`, or not `better` where that is required.
    """
    proof = rundir.read_json(run_path / "merge" / "proof.json")
    metrics = rundir.read_json(run_path / "evaluate" / "metrics.json")
    gates = _gates(proof, metrics, publish.require_improvement)
    message = "nothing was uploaded: publish.repo_id is not set"
    if publish.repo_id:
        message = f"nothing was uploaded: this version does not upload; the release for {publish.repo_id} is ready"
    record = {"uploaded": False, "message": message, "visibility": None, "gates": gates}
    failed = [gate for gate in gates if not gate["passed"]]
    if failed:
        rundir.write_json(stage_dir / "hub.json", {**record, "message": "refused: nothing may be released"})
        raise GateRefused(
            "the release is refused: " + "; ".join(f"{g['name']}: {g['measured']}, bound {g['bound']}" for g in failed),
            hint="what was trained and the merged model are kept; see report.html for the answers behind the figures",
        )
    facts = card.gather(name=name, base=base, prompt_name=prompt_name, run_path=run_path, examples=publish.examples)
    with rundir.atomic_dir(stage_dir / "release") as release:
        if publish.merged:
            _link_tree(run_path / "merge" / "model", release / "model")
            _copy_license(base, release / "model")
            rundir.write_text(release / "model" / "README.md", card.model_card(facts))
        if publish.adapter and (run_path / "train" / "adapter").is_dir():
            _link_tree(run_path / "train" / "adapter", release / "adapter")
            _copy_license(base, release / "adapter")
            rundir.write_text(release / "adapter" / "README.md", card.adapter_card(facts))
        files = {
            str(path.relative_to(release)): {"size": path.stat().st_size, "sha256": rundir.sha256_of(path)}
            for path in sorted(release.rglob("*"))
            if path.is_file()
        }
    rundir.write_json(stage_dir / "hub.json", {**record, "files": files})
    return message


def _gates(proof: dict[str, Any], metrics: dict[str, Any], require_improvement: bool) -> list[dict[str, Any]]:
    wanted = ["better"] if require_improvement else ["better", "not proven"]
    verdict = metrics["verdict"]
    return [
        {"name": "merged_equals_trained", "passed": proof["passed"], "measured": proof["passed"], "bound": True},
        {"name": "not_worse", "passed": verdict in wanted, "measured": verdict, "bound": " or ".join(wanted)},
    ]


def _link_tree(source: Path, target: Path) -> None:
    """The files of `source` under `target`: no second copy on disk."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            rundir.link_or_copy(path, copy)


def _copy_license(base: Base, folder: Path) -> None:
    """The base's licence travels with what was made from it."""
    for path in [*base.dir.glob("LICENSE*"), *base.dir.glob("NOTICE*")]:
        if path.is_file():
            shutil.copy2(path, folder)
