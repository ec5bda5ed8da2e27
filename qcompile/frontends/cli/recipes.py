"""`qcompile recipes` and `qcompile recipes show NAME`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from qcompile.frontends.cli.options import Json
from qcompile.frontends.cli.outcome import reported

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@app.callback()
@reported
def list_recipes(ctx: typer.Context, json_output: Json = False) -> None:
    """List the recipes that come with qcompile."""
    if ctx.invoked_subcommand:
        return
    from qcompile.frontends.builtin_recipes import find_recipe, recipe_names

    found = {name: find_recipe(name).description for name in recipe_names()}
    if json_output:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, found), default=0)
    for name, description in found.items():
        typer.echo(f"{name:{width}}  {description}")


@app.command("show")
@reported
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A recipe's name or file.")],
    json_output: Json = False,
) -> None:
    """Show the steps of a recipe with all their options."""
    import yaml

    from qcompile.frontends.builtin_recipes import find_recipe

    recipe = find_recipe(name)
    steps = [{p.name: {k.replace("_", "-"): v for k, v in p.model_dump(mode="json").items()}} for p in recipe.passes()]
    shown = {"name": recipe.name, "description": recipe.description, "steps": steps}
    typer.echo(json.dumps(shown, indent=2) if json_output else yaml.safe_dump(shown, sort_keys=False).rstrip())
