"""`autotune export`: a study's answer in the words of whatever deploys it."""

from pathlib import Path
from typing import Annotated

import typer

from autotune.console import JsonOption, emit_json, err, next_step, out, table

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished study.", show_default=False)]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", "-f", help="Left out: lists the formats, and which fit this study.", show_default=False),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write. Default: standard output.", show_default=False)
]
NameOption = Annotated[
    str | None, typer.Option(help="What the deployment is called. Default: the run folder's name.", show_default=False)
]
PortOption = Annotated[int, typer.Option(help="Where it listens.", min=1, max=65535)]
ImageOption = Annotated[
    str | None, typer.Option(help="Container image. Default: the engine's own, of the version measured.")
]
ProgramOption = Annotated[
    str | None, typer.Option(help="Path of the engine's program on its machine, for shell and systemd.")
]


def export(
    run: RunArgument,
    format_: FormatOption = None,
    output: OutputOption = None,
    name: NameOption = None,
    port: PortOption = 8080,
    image: ImageOption = None,
    program: ProgramOption = None,
    json: JsonOption = False,
) -> None:
    """Write a study's winning configuration as a script, a unit, a manifest, a chart's values …"""
    from harness import plugins
    from lifecycle.export.base import Exporter
    from lifecycle.export.run import Placement, deployment

    wanted = deployment(run, Placement(name, port, image, program))
    if format_ is None:
        _list(run, wanted, json=json)
        return
    exporter: Exporter = plugins.load("exporters", format_)()
    text = exporter.render(wanted)
    if json:
        emit_json({"format": exporter.name, "digest": wanted.canonical.digest, "text": text})
    elif output is None:
        typer.echo(text, nl=False)
    if output is not None:
        output.write_text(text, encoding="utf-8")
        err.print(f"wrote {output}, configuration {wanted.canonical.config_digest[:10]}", soft_wrap=True)


def _list(run: Path, wanted: object, *, json: bool) -> None:
    from rich.markup import escape

    from harness import plugins
    from lifecycle.export.base import Deployment, Exporter
    from scenarios.errors import UserError

    assert isinstance(wanted, Deployment)
    fits: dict[str, str] = {}
    files: dict[str, str] = {}
    for name in plugins.names("exporters"):
        exporter: Exporter = plugins.load("exporters", name)()
        files[name] = exporter.file_name
        try:
            exporter.render(wanted)
            fits[name] = ""
        except UserError as refusal:
            fits[name] = str(refusal)
    if json:
        emit_json([{"format": name, "file": files[name], "refusal": why or None} for name, why in fits.items()])
        return
    rows = table("Formats", "format", "usual file", "", "")
    for name, why in fits.items():
        rows.add_row(name, files[name], "[red]no[/]" if why else "[green]ok[/]", escape(why))
    out.print(rows)
    next_step(f"autotune export {run} --format {next(name for name, why in fits.items() if not why)}")
