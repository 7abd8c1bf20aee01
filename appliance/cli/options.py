"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE|RUN_DIR|CSV",
        envvar="APPLIANCE_RECIPE",
        show_default=False,
        help="A shipped recipe's name, a YAML file, a run directory, or a CSV. "
        "Default: data/recipe.yaml if it exists, otherwise the recipe `default`.",
    ),
]
RunDirOrNewest = Annotated[
    Path | None, typer.Argument(metavar="RUN_DIR", help="A run directory. Default: the newest run.")
]
RunDirArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory, such as runs/demo.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one field, for example train.epochs=1. May be repeated."),
]
FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="RUN_DIR",
        help="Train the adapter of a finished run on, with this CSV: its test rows stay test rows.",
    ),
]
RedoOption = Annotated[str | None, typer.Option("--redo", metavar="STAGE", help="Redo this stage and all later ones.")]
RunsOption = Annotated[
    Path, typer.Option("--runs-dir", metavar="FOLDER", envvar="APPLIANCE_RUNS_DIR", help="Where run directories are.")
]
CacheOption = Annotated[
    Path,
    typer.Option(
        "--cache-dir",
        metavar="FOLDER",
        envvar="APPLIANCE_CACHE_DIR",
        help="Where models made on this machine are kept.",
    ),
]
EvenIfWorseOption = Annotated[
    bool, typer.Option("--even-if-worse", help="Release the model even if the verdict is `worse`; its card says so.")
]
IntoExistingOption = Annotated[
    bool, typer.Option("--into-existing", help="Publish to a repository that already holds something else.")
]
RepoOption = Annotated[
    str | None,
    typer.Option("--repo-id", metavar="USER/NAME", help="The repository on the Hub; NAME alone is in your account."),
]
VisibilityOption = Annotated[
    Literal["private", "public"] | None,
    typer.Option("--visibility", metavar="private|public", help="Who may see a new repository."),
]
_GGUF = typer.Option("--gguf", metavar="TYPE", help="f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m; may be repeated.")
GgufOption = Annotated[list[str], _GGUF]
GgufTooOption = Annotated[list[str] | None, _GGUF]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Also show the fields that are as by default, and the checks that are ok.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
TokensOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", metavar="TOKENS", min=1, help="Longest answer, in tokens. Default: the recipe's."),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="NUMBER", min=0.0, help="0 takes the likeliest token. Default: the recipe's sampling."
    ),
]
TurnsOption = Annotated[
    bool | None,
    typer.Option(
        "--turns/--no-turns",
        show_default=False,
        help="Keep the earlier questions and answers in the prompt, or ask each question alone. Default: as trained.",
    ),
]
USUAL_CACHE_DIR = Path.home() / ".cache" / "finetune-appliance"
