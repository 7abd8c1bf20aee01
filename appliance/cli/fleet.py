"""`appliance fleet CSV…`: a run for each CSV, many at once. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import (
    USUAL_CACHE_DIR,
    CacheOption,
    EvenIfWorseOption,
    IntoExistingOption,
    JsonOption,
    RunsOption,
    SetOption,
)

Csvs = Annotated[
    list[str], typer.Argument(metavar="CSV", help="CSVs, or patterns such as 'data/*.csv'. A run for each.")
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        envvar="APPLIANCE_RECIPE",
        help="For all runs. Default: as `appliance run CSV` chooses it.",
    ),
]
RunsPerGpuOption = Annotated[
    int, typer.Option("--runs-per-gpu", metavar="NUMBER", min=1, help="Runs that share a GPU, and its memory.")
]
CoresOption = Annotated[
    int | None,
    typer.Option(
        "--cores", metavar="NUMBER", min=1, help="Cores of a run without a GPU. Default: OMP_NUM_THREADS, or one."
    ),
]

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Where runs and CSVs are kept if the machines share no disk, such as s3://bucket/fleet.",
    ),
]


def fleet(
    csvs: Csvs,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    runs_per_gpu: RunsPerGpuOption = 1,
    cores: CoresOption = None,
    storage: StorageOption = None,
    even_if_worse: EvenIfWorseOption = False,
    into_existing: IntoExistingOption = False,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Run each of many CSVs through all stages. As many at once as there are GPUs.

    Each run is named after its CSV. Without a GPU, as many at once as there are cores. RAY_ADDRESS names a cluster of
    several machines. If the recipe has a publish.repo_id NAME, a run is published as NAME-{stem of its CSV}. A run that
    fails does not stop the others; the same command continues what is not finished. Needs the extra `ray`.

    appliance fleet 'data/*.csv'

    appliance fleet 'shops/*.csv' --recipe my.yaml --set publish.repo_id=me/shop
    """
    from dataclasses import asdict

    from appliance.process import console
    from appliance.sweeps import fleet_command, fleet_shown

    flags = [name for name, given in (("--even-if-worse", even_if_worse), ("--into-existing", into_existing)) if given]
    done = fleet_command.run(
        csvs,
        recipe,
        set_ or [],
        runs_dir,
        cache_dir,
        flags=flags,
        runs_per_gpu=runs_per_gpu,
        cores=cores,
        storage=storage,
    )
    if as_json:
        console.result(json.dumps([asdict(row) for row in done.rows], ensure_ascii=False, indent=2))
    else:
        columns = fleet_shown.columns(has_gpus=done.has_gpus)
        console.table("", columns, [row.cells() for row in done.rows], to_stdout=True)
    if done.page:
        console.say(f"written: {done.page}")
    if done.interrupted:
        raise done.interrupted
    raise typer.Exit(fleet_shown.worst(done.rows))
