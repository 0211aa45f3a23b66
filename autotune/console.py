"""How commands speak: tables for people on stdout, one JSON document with --json, errors on stderr."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def emit_json(document: Any) -> None:
    """One JSON document on stdout, unwrapped and uncoloured."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold", header_style="bold", box=None)


def next_step(command: str) -> None:
    """The last line of every command: what to run next."""
    out.print(f"[dim]next:[/] {command}", soft_wrap=True)
