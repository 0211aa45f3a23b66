"""`autotune engines`: which there are, and environments of their own for those that need one."""

from typing import Annotated

import typer

from autotune.console import JsonOption, emit_json, err, next_step, out, table

app = typer.Typer(
    help="Inference engines and builders, and the environments that some of them need.", no_args_is_help=True
)

EngineArgument = Annotated[str, typer.Argument(help="An engine or builder with a recipe: see `autotune engines list`.")]
KeepOption = Annotated[bool, typer.Option("--keep", help="Do nothing where it is installed already.")]


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """Every engine, and every builder of checkpoints: its version, or how to get it."""
    from rich.markup import escape

    from harness import plugins
    from harness.engines.environments import RECIPES, interpreter
    from scenarios.errors import AutotuneError

    found: list[dict[str, object]] = []
    for name in plugins.names("engines"):
        try:
            says, ok = plugins.load("engines", name)().version(), True
        except AutotuneError as error:
            says, ok = str(error), False
        recipe = RECIPES.get(name)
        found.append(
            {
                "name": name,
                "ok": ok,
                "says": says,
                "recipe": recipe.why if recipe else None,
                "python": interpreter(name),
            }
        )
    for name, recipe in RECIPES.items():
        if name not in plugins.names("engines"):  # a builder of checkpoints
            python = interpreter(name)
            says = "installed" if python else f"{name} is not installed: run `autotune engines install {name}`"
            found.append({"name": name, "ok": bool(python), "says": says, "recipe": recipe.why, "python": python})
    if json:
        emit_json(found)
        return
    rows = table("Engines", "engine", "", "says", "own environment")
    for row in found:
        mark = "[green]ok[/]" if row["ok"] else "[yellow]no[/]"
        rows.add_row(
            str(row["name"]), mark, escape(str(row["says"])), escape(str(row["python"] or row["recipe"] or ""))
        )
    out.print(rows)
    next_step("autotune scenarios list")


@app.command()
def install(name: EngineArgument, keep: KeepOption = False, json: JsonOption = False) -> None:
    """Make a virtual environment for an engine, in the user's cache; minutes, and gigabytes."""
    from harness.engines import environments

    python = environments.interpreter(name) if keep else None
    if python is None:
        with err.status(f"installing {name} …") as status:
            folder = environments.install(name, lambda what: status.update(f"installing {name}: {what} …"))
        python = str(folder / "bin" / "python")
    if json:
        emit_json({"name": name, "python": python})
        return
    out.print(f"{name} is in {python}", soft_wrap=True, markup=False)
    next_step("autotune doctor")
