"""`appliance recipe list`, `show` and `schema`. No logic."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from appliance.cli.help import HelpGroup
from appliance.cli.options import JsonOption

_RECIPE_HELP = """List recipes and print them.

    appliance recipe list

    appliance recipe schema"""
recipe_app = typer.Typer(cls=HelpGroup, no_args_is_help=True, rich_markup_mode=None, help=_RECIPE_HELP)


@recipe_app.command("list")
def recipe_list() -> None:
    """List the shipped recipes and what each needs.

    appliance recipe list

    appliance recipe show chatbot-cpu
    """
    from appliance.process import console
    from appliance.recipe import catalogue

    rows = [(entry.name, entry.headline, entry.needs) for entry in catalogue.entries()]
    console.table("", ("recipe", "what it is for", "what it needs"), rows, to_stdout=True)


@recipe_app.command("show")
def recipe_show(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, a file, or a run directory.")],
) -> None:
    """Print a recipe, for example to edit a copy.

    appliance recipe show chatbot-cpu > my.yaml

    appliance recipe show runs/demo
    """
    from appliance.recipe import resolve

    typer.echo(resolve.read_text(resolve.locate(name)), nl=False)


@recipe_app.command("schema")
def recipe_schema(as_json: JsonOption = False) -> None:
    """Print every field, its meaning and default.

    appliance recipe schema

    appliance recipe schema --json
    """
    from appliance.process import console
    from appliance.recipe import fields as recipe_fields

    if as_json:
        typer.echo(json.dumps(recipe_fields.Recipe.model_json_schema(), ensure_ascii=False, indent=2))
    else:
        console.table("", ("field", "default", "meaning"), recipe_fields.documentation(), to_stdout=True)
