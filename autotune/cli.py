"""The entry hall: names the commands, and turns errors into one message and an exit code.

0 done · 1 no configuration meets the targets · 2 user error · 3 infrastructure · 130 stopped by Ctrl-C.
"""

import sys

import typer

from autotune import bench, doctor, engines, export, load_worker, models, report, scenarios, sync, tune
from autotune.console import err
from scenarios.errors import AutotuneError

app = typer.Typer(
    name="autotune",
    help="Finds, proves and keeps true the serving configuration that is right for your model and your traffic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command()(doctor.doctor)
app.add_typer(scenarios.app, name="scenarios")
app.add_typer(models.app, name="models")
app.add_typer(engines.app, name="engines")
app.command()(bench.bench)
app.command()(load_worker.load_worker)
app.command()(tune.tune)
app.command()(report.report)
app.command()(report.compare)
app.command()(bench.replay)
app.command()(export.export)
app.command()(sync.sync)


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)
    except AutotuneError as error:
        err.print(f"[bold red]error:[/] {_escaped(error)}", soft_wrap=True)
        sys.exit(error.exit_code)


def _escaped(error: AutotuneError) -> str:
    from rich.markup import escape

    return escape(str(error))
