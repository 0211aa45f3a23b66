"""`autotune scenarios`: list, show and check scenario files."""

from pathlib import Path
from typing import Annotated

import typer

from autotune.console import JsonOption, emit_json, next_step, out, table

app = typer.Typer(no_args_is_help=True, help="What can be asked: the catalogue, and your own files.")

Source = Annotated[str, typer.Argument(metavar="SCENARIO", help="A YAML file, or a name of the catalogue.")]
Sources = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Scenario files, or folders of them.")]


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """The ready scenarios."""
    from scenarios.load import catalogue, load

    ready = {name: load(name) for name in catalogue()}
    if json:
        emit_json(
            [{"name": name, "description": s.description, "file": str(catalogue()[name])} for name, s in ready.items()]
        )
        return
    rows = table("Scenarios", "name", "objective", "engine", "what it asks")
    for name, scenario in ready.items():
        rows.add_row(name, scenario.objective, scenario.engine.name, scenario.description)
    out.print(rows)
    next_step("autotune scenarios show quickstart")


@app.command()
def show(scenario: Source, json: JsonOption = False) -> None:
    """One scenario with every default written out."""
    from scenarios.load import dump_yaml, load

    resolved = load(scenario)
    if json:
        emit_json(resolved.to_dict())
    else:
        typer.echo(dump_yaml(resolved), nl=False)


@app.command()
def check(paths: Sources, json: JsonOption = False) -> None:
    """Say everything that is wrong with scenario files. Exit code 2 if anything is."""
    from dataclasses import asdict

    from rich.markup import escape

    from scenarios.load import check as problems_of

    files = [file for path in paths for file in _scenario_files(path)]
    found = {file: problems_of(str(file)) for file in files}
    if json:
        emit_json([asdict(problem) for problems in found.values() for problem in problems])
    else:
        for file, problems in found.items():
            for problem in problems:
                out.print(f"[red]{escape(str(problem))}[/]", soft_wrap=True)
            if not problems:
                out.print(f"{escape(str(file))}  [green]ok[/]", soft_wrap=True)
    if any(found.values()):
        raise typer.Exit(2)


@app.command()
def schema() -> None:
    """The JSON Schema of a scenario file, for editors."""
    from scenarios.load import schema_text

    typer.echo(schema_text(), nl=False)


def _scenario_files(path: Path) -> list[Path]:
    """Raises UserError for a folder without any."""
    from scenarios.errors import UserError

    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in {".yaml", ".yml"})
    if not files:
        raise UserError(f"{path} holds no .yaml file")
    return files
