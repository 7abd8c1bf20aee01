"""`appliance dataset upload`: the rows of a prepared run, with their sides, to a dataset repository. No logic here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from appliance.errors import HubError, RecipeError, RunDirError
from appliance.wording import counted

# What the Hub's refusals call this command's options.
_OPTIONS = {
    "publish.repo_id": "--repo-id",
    "publish.visibility=": "--visibility ",
    "publish.visibility": "--visibility",
}


def register(dataset_app: typer.Typer) -> None:
    """Adds the command to `appliance dataset`."""
    dataset_app.command("upload")(upload)


def upload(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A prepared run, such as runs/demo.")],
    repo_id: Annotated[
        str,
        typer.Option("--repo-id", metavar="USER/NAME", help="The dataset repository; NAME alone is in your account."),
    ],
    visibility: Annotated[
        Literal["private", "public"],
        typer.Option("--visibility", metavar="private|public", help="Who may see a new repository."),
    ] = "private",
    into_existing: Annotated[
        bool, typer.Option("--into-existing", help="Upload to a repository that already holds something else.")
    ] = False,
) -> None:
    """Upload a prepared run's rows. They go to a dataset on the Hub, each with its side, to train from there.

    Needs HF_TOKEN, but no training. Uploads train.csv, val.csv, test.csv and rows.csv (the rows of all sides), and
    with data.split=notebook also train_ds.csv and test_ds.csv.

    appliance prepare runs/shop

    appliance dataset upload runs/shop --repo-id me/shop-dataset
    """
    from appliance.pipeline import publish_rows
    from appliance.process import console
    from appliance.recipe import hub_names, resolve
    from appliance.release import dataset
    from appliance.rundir import find as rundir_find
    from appliance.rundir.directory import RunDir

    rundir_find.require_run(run_dir)
    try:
        repo_id = hub_names.repo_id(repo_id)
    except ValueError as error:
        hint = "USER/NAME, or NAME for your own account: --repo-id me/shop-rows"
        raise RecipeError(f"--repo-id: {error}", hint=hint) from error
    run = RunDir(run_dir)
    typed = shlex.quote(str(run_dir))
    with run.lock(), console.log_file(run_dir / "appliance.log"):
        record = run.record("prepare")
        if record is None or not run.is_done("prepare", record.inputs):
            raise RunDirError(
                f"{run_dir} is not prepared: its rows have not been read and split yet",
                hint=f"`appliance prepare {typed}` does that, without training",
            )
        recipe = resolve.load(str(run_dir), environ={}).recipe
        flags = f" --visibility {visibility}" * (visibility != "private") + " --into-existing" * into_existing
        try:
            pushed, rows = publish_rows.upload_rows(
                name=recipe.name,
                repo_id=repo_id,
                visibility=visibility,
                run_path=run_dir,
                folder=run_dir / "dataset",
                again=f"`appliance dataset upload {typed} --repo-id {repo_id}{flags}` continues",
                into_existing=into_existing,
            )
        except HubError as error:
            raise HubError(_as_options(str(error)), hint=_as_options(error.hint)) from error
    was = "" if pushed.was_new else ", as it was before"
    console.result(f"repository   {pushed.commit_url.partition('/commit/')[0]} ({pushed.visibility}{was})")
    console.result(f"commit       {pushed.commit_oid}")
    console.result(f"files        {', '.join(rows.files)}")
    if rows.torn:
        console.say(
            f"{counted(rows.torn, 'question is', 'questions are')} on two sides, which "
            "data.split=column refuses: rows.csv cannot be trained on as it is; data.split=group never puts a question "
            "on two sides",
            style="warning",
        )
        return
    line = dataset.command(recipe.data, pushed.repo_id, run=str(run_dir), name=f"{recipe.name}-from-hub")
    console.result(f"train        {line}")


def _as_options(text: str) -> str:
    for field, option in _OPTIONS.items():
        text = text.replace(field, option)
    return text
