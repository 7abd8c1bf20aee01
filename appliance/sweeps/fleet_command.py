"""`appliance fleet` from its arguments to its rows: what is planned, what of it is not finished, and its page."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError, Interrupted, RecipeError, RunDirError
from appliance.process import console, files
from appliance.recipe import resolve
from appliance.report import compare
from appliance.rundir.directory import RunDir
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps import fleet, fleet_shown, plan, seen_by_nodes, seen_on_node, stored_run
from appliance.sweeps.run_child import RunOutcome
from appliance.sweeps.storage import Storage
from appliance.wording import counted

LOG = "fleet.log"  # in the runs directory
_DYING = 5.0  # seconds for the runs of a fleet that was killed: they end with it, within moments


@dataclass(frozen=True)
class Done:
    """`page`: where the runs stand beside each other; None if there are fewer than two, or it was stopped by a signal:
    `interrupted`.
    """

    rows: list[fleet_shown.Row]
    has_gpus: bool
    page: Path | None
    interrupted: Interrupted | None = None


def run(
    patterns: Sequence[str],
    recipe: str | None,
    set_: Sequence[str],
    runs_dir: Path,
    cache_dir: Path,
    *,
    flags: Sequence[str],
    runs_per_gpu: int,
    cores: int | None,
    storage: str | None = None,
) -> Done:
    """Runs every CSV that is not finished.

    Args:
        patterns: CSVs, and patterns of their names.
        recipe: of all runs; None: as `appliance run CSV` chooses it, by what the machines have.
        set_: KEY=VALUE of its fields.
        runs_dir, cache_dir: as for one run.
        flags: for every run's command, as typed.
        runs_per_gpu: how many share a card.
        cores: of a run without a GPU; None: see fleet.share.
        storage: URL where runs and CSVs are kept; None: every node sees the runs directory.

    Raises ApplianceError or Interrupted before any work begins; that a run failed is in its row, and a signal that came
    later in what is returned, after every run has saved what it has.
    """
    csvs = plan.files(patterns)
    sources = [recipe or resolve.usual_recipe()]
    if sources == ["default"] and recipe is None:
        sources = [resolve.shipped_for_csv(on_gpu=on_gpu) for on_gpu in (True, False)]
    planned = {source: plan.runs(csvs, source, set_, os.environ) for source in sources}
    stored = _stored(storage, runs_dir, csvs, planned[sources[0]])
    for source, runs in planned.items():
        if not fleet.unfinished(runs, runs_dir, stored):
            console.say(f"all {counted(len(runs), 'run')} with {source} are done already", style="dim")
            return _done(runs, {}, runs_dir)
    runs_dir.mkdir(parents=True, exist_ok=True)
    with console.log_file(runs_dir / LOG), sweeps_cluster.connected() as cluster:
        source = resolve.shipped_for_csv(on_gpu=cluster.has_gpus) if len(sources) > 1 else sources[0]
        share = fleet.share(has_gpus=cluster.has_gpus, runs_per_gpu=runs_per_gpu, cores=cores, environ=os.environ)
        todo = fleet.unfinished(planned[source], runs_dir, stored)
        if cluster.embedded:
            _refuse_at_work(todo, runs_dir)
        else:
            _refuse_blind(cluster, todo, runs_dir, storage)
        _announce(cluster, source, share, len(csvs), len(todo))
        outcomes, interrupted = fleet.start(
            todo,
            source,
            runs_dir,
            cache_dir,
            cluster=cluster,
            share=share,
            flags=flags,
            progress=fleet_shown.Progress(len(csvs), len(csvs) - len(todo)),
            stored=stored,
        )
    return _done(planned[source], outcomes, runs_dir, interrupted)


def _stored(
    url: str | None, runs_dir: Path, csvs: Sequence[str], runs: Sequence[plan.Planned]
) -> stored_run.StoredRuns | None:
    """The storage, and from it what is known of the runs so far. Raises RecipeError, EnvironmentUnavailable."""
    if url is None:
        return None
    if on_hub := [csv for csv in csvs if "://" in csv]:
        raise RecipeError(f"--storage: {on_hub[0]} is not a file here", hint="leave --storage out, or download the CSV")
    stored = stored_run.StoredRuns(Storage(url), runs_dir.absolute())
    stored.storage.folder.refuse_unusable()
    stored.bring_all(runs)
    return stored


def _refuse_at_work(todo: Sequence[plan.Planned], runs_dir: Path) -> None:
    """Raises RunDirError: another command, such as a second fleet, is at work on one of the runs.

    Those of a fleet that was killed just now are waited for.
    """
    end = time.monotonic() + _DYING
    while held := [path for one in todo if RunDir(path := runs_dir / one.name).is_locked]:
        if time.monotonic() >= end:
            raise RunDirError(
                f"another command is at work on {counted(len(held), 'run')} of these, such as {held[0]}",
                hint=f"wait until it ends, or leave those out; `appliance status --runs-dir {runs_dir}` shows them",
            )
        time.sleep(0.2)


def _refuse_blind(
    cluster: sweeps_cluster.Cluster, todo: Sequence[plan.Planned], runs_dir: Path, storage: str | None
) -> None:
    """Says what the machines of the cluster do not see. Raises EnvironmentUnavailable: runs there cannot be right."""
    recipe = todo[0].recipe
    base = str(Path(recipe.model.id).absolute()) if todo[0].has_local_base else recipe.model.id
    csvs = {str(path.absolute()): files.sha256_of(path) for path in (Path(one.csv) for one in todo) if path.is_file()}
    needs = seen_by_nodes.Needs(
        runs_dir.absolute(),
        Path.cwd(),
        {} if storage else csvs,
        base=base,
        base_identity=seen_on_node.identity_of(base),
        variables=fleet.variables(os.environ),
        hub_token=recipe.publish.repo_id is not None,
        storage=storage or "",
    )
    console.say(f"asking {counted(len(cluster.nodes), 'machine')} what they see", style="dim")
    found = seen_by_nodes.ask(cluster.ray, cluster.nodes, needs)
    if any(one.verdict != "ok" for one in found):
        console.findings_table([one.cells() for one in found])
    seen_by_nodes.refuse(found)


def _announce(cluster: sweeps_cluster.Cluster, source: str, share: fleet.Share, runs: int, todo: int) -> None:
    room = sweeps_cluster.slots(cluster.nodes, gpus=share.gpus, cpus=share.cores)
    each = "a GPU" if share.gpus == 1 else f"1/{round(1 / share.gpus)} of a GPU" if share.gpus else ""
    each = each or counted(share.cores, "core")
    where = "this machine" if cluster.embedded else counted(len(room), "machine")
    before = f", {runs - todo} of them done before" if runs > todo else ""
    console.say(
        f"{counted(runs, 'CSV')} with {source}{before}; {sum(room.values())} at once on {where}, each on {each}"
    )


def _done(
    runs: Sequence[plan.Planned],
    outcomes: Mapping[str, RunOutcome],
    runs_dir: Path,
    interrupted: Interrupted | None = None,
) -> Done:
    rows = fleet_shown.rows(runs, outcomes, runs_dir)
    has_gpus = any(row.has_gpu for row in rows)
    page = None if interrupted else _page([runs_dir / one.name for one in runs], runs_dir)  # it takes seconds
    return Done(rows, has_gpus, page, interrupted)


def _page(run_paths: Sequence[Path], runs_dir: Path) -> Path | None:
    """Nothing here may hide what came out of the runs."""
    begun = [path for path in run_paths if (path / "recipe.yaml").is_file()]
    if len(begun) < 2:
        return None
    try:
        return compare.write_apart(begun, runs_dir / compare.FILE)
    except (ApplianceError, OSError) as error:
        console.say(f"{compare.FILE} cannot be written: {error}", style="warning")
        return None
