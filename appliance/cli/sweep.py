"""`appliance sweep`. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from appliance.cli.fleet import CoresOption, RunsPerGpuOption
from appliance.cli.options import USUAL_CACHE_DIR, CacheOption, RunsOption, SetOption


def sweep(
    source: Annotated[
        str, typer.Argument(metavar="RECIPE|CSV", help="A shipped recipe's name, a YAML file, or a CSV.")
    ],
    try_: Annotated[
        list[str],
        typer.Option(
            "--try",
            metavar="KEY=VALUES",
            help="Values to try for a field of train or tuning, between commas. May be repeated.",
        ),
    ],
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            min=1,
            help="Try N of the combinations, or N values drawn from KEY=LOW..HIGH. Default: every combination.",
        ),
    ] = None,
    metric: Annotated[
        Literal["val_loss"], typer.Option("--metric", metavar="METRIC", help="What the trials are compared by.")
    ] = "val_loss",
    set_: SetOption = None,
    runs_per_gpu: RunsPerGpuOption = 1,
    cores: CoresOption = None,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
) -> None:
    """Try settings side by side, one GPU each. The one with the lowest val loss is evaluated, proven and released.

    A trial is a run that goes as far as `train`; ASHA stops those that fall behind. The test rows are looked at once,
    for the winner. The same command continues.

    appliance sweep demo --try train.learning_rate=1e-3,3e-3 --try tuning.r=8,16

    appliance sweep my.yaml --try train.learning_rate=1e-5..1e-3 --samples 8
    """
    from appliance.recipe import resolve
    from appliance.sweeps import sweep as sweeps_sweep
    from appliance.sweeps import trials
    from appliance.sweeps.one_sweep import Sweep

    overrides = list(set_ or [])
    if resolve.is_csv(source):
        from appliance.pipeline import first_run

        source, values = first_run.of_csv(source)
        overrides = [*values, *overrides]
    plan = trials.plan(source, try_, samples=samples, overrides=overrides)
    given = plan, source, tuple(overrides), runs_dir, cache_dir
    sweeps_sweep.run(Sweep(*given, metric=metric, runs_per_gpu=runs_per_gpu, cores=cores))
