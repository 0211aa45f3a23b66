"""`autotune sync`: bring the mirrors of finished or interrupted studies up to date."""

from pathlib import Path
from typing import Annotated

import typer

from autotune.console import JsonOption, emit_json, err, next_step, out


def sync(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="mlflow, wandb; may be repeated. Default: those tried before.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Record studies in MLflow or Weights & Biases, again or for the first time; nothing is recorded twice."""
    from lifecycle.registry.sync import mirror_all, trackers_of

    attempts = {str(run): mirror_all(run, tracker or trackers_of(run)) for run in runs}
    if json:
        emit_json({run: [a.model_dump(mode="json") for a in made] for run, made in attempts.items()})
    else:
        for attempt in (a for made in attempts.values() for a in made):
            (out if attempt.ok else err).print(str(attempt), soft_wrap=True, markup=False)
    if not all(a.ok for made in attempts.values() for a in made):
        raise typer.Exit(3)
    if not json:
        next_step(f"autotune report {runs[0]}")
