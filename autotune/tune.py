"""`autotune tune`: search, prove, record, tell."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.console import JsonOption, emit_json, err, next_step, out
from autotune.runs import make_folder, study_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autotune.live import Watch
    from lifecycle.registry.sync import Attempt
    from scenarios.space import SearchSpace
    from scenarios.spec import Scenario
    from tuners.results import Winner

DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600}


def tune(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or a name from `autotune scenarios list`.")],
    run: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/<scenario>, or -2, -3 … beside it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished run.")] = False,
    trials: Annotated[int | None, typer.Option(help="Instead of budget.trials.", min=1)] = None,
    budget: Annotated[str | None, typer.Option(help="Wall-clock limit of the search, e.g. 90s, 20m, 2h.")] = None,
    tuner: Annotated[str | None, typer.Option(help="Instead of search.tuner: tpe, random, grid …")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of search.seed.", min=0)] = None,
    tracker: Annotated[list[str] | None, typer.Option(help="Where to record: mlflow, wandb. Default: mlflow.")] = None,
    workers: Annotated[int, typer.Option(help="Load processes on this machine.", min=1)] = 1,
    track: Annotated[bool, typer.Option(help="--no-track: record nowhere but in the run folder.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, its memory and its time; start nothing.")
    ] = False,
    assume_gpus: Annotated[
        str | None, typer.Option(help="With --dry-run: as if there were these GPUs, e.g. 1x80 (GiB).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the answer.")] = False,
    json: JsonOption = False,
) -> None:
    """Find the serving configuration that gives the most under the scenario's targets, and prove it."""
    from autotune.live import Watch
    from harness import plugins
    from harness.bench import prepare
    from harness.load.fleet import Fleet
    from lifecycle.registry.sync import mirror_all
    from reports import html
    from scenarios.load import load
    from tuners.laboratory import Laboratory
    from tuners.study import Asked, Study

    changes = {"trials": trials, "wall_clock_s": _seconds(budget) if budget else None}
    wanted = _overridden(load(scenario), budget=changes, search={"tuner": tuner, "seed": seed})
    asked_otherwise = any(value is not None for value in (trials, budget, tuner, seed))
    _refuse_or_only_look(wanted, resume and asked_otherwise, dry_run, assume_gpus, json=json)
    folder = study_folder(run, wanted.name, resume=resume)
    if resume and (folder / "scenario.yaml").exists():
        wanted = load(folder / "scenario.yaml")  # as it was asked when the study began
    try:
        with Watch(err, quiet=quiet or json) as watch:
            watch.note(f"run folder: {folder}")
            make_folder(folder)
            subject = prepare(wanted, folder, watch, build=True, fleet=Fleet(workers))
            space = subject.space().narrowed(wanted.search.knobs)
            _check(space, watch)
            make = plugins.load("tuners", wanted.search.tuner)
            laboratory = Laboratory(subject, space)
            study = Study(
                laboratory,
                space,
                make(space, wanted.search.seed),
                watch,
                Asked(scenario, shlex.join(["autotune", *sys.argv[1:]])),
            )
            winner = study.run()
            watch.begin("report", None)
            page = html.write(folder)
            mirrors = []
            if track:
                watch.begin("record", None)
                mirrors = mirror_all(folder, tracker or ["mlflow"])
    except KeyboardInterrupt:
        err.print(f"\nstopped. Everything finished is kept in {folder}; go on with:", soft_wrap=True)
        err.print(f"  autotune tune {shlex.quote(scenario)} --run {shlex.quote(str(folder))} --resume", soft_wrap=True)
        raise typer.Exit(130) from None
    _tell(folder, page, winner, mirrors, json=json)
    if winner.outcome == "none_feasible":
        raise typer.Exit(1)


def _tell(folder: Path, page: Path, winner: "Winner", mirrors: "Sequence[Attempt]", *, json: bool) -> None:
    from autotune.report import print_answer
    from reports import records
    from reports.view import answer

    if json:
        documents = [m.model_dump(mode="json") for m in mirrors]
        emit_json(
            {"run": str(folder), "report": str(page), "winner": winner.model_dump(mode="json"), "mirrors": documents}
        )
    else:
        print_answer(answer(records.read(folder)))
        for line in (*mirrors, f"report: {page}", f"winner: {folder / 'winner.json'}"):
            out.print(str(line), soft_wrap=True, markup=False)
        next_step(f"open {page}" if winner.outcome != "none_feasible" else "relax the slo, or widen search.knobs")


def _refuse_or_only_look(
    wanted: "Scenario", resumed_otherwise: bool, dry_run: bool, assume_gpus: str | None, *, json: bool
) -> None:
    """Options that contradict each other; and --dry-run, which ends here."""
    from autotune import dry_run as dry_runs
    from scenarios.errors import UserError

    if resumed_otherwise:
        raise UserError("--resume goes on as the study was asked for: leave --trials, --budget, --tuner, --seed away")
    if dry_run:
        dry_runs.show(wanted, assume_gpus, json=json)
        raise typer.Exit
    if assume_gpus is not None:
        raise UserError("--assume-gpus has a meaning only with --dry-run")


def _check(space: "SearchSpace", watch: "Watch") -> None:
    """Says what is left out. Raises UserError where nothing is left to tune."""
    from scenarios.errors import UserError

    for notice in space.notices:
        watch.note(notice)
    if not space.free:
        raise UserError(f"{space.engine}: no knob has more than one value: nothing to tune; use `autotune bench`")


def _overridden(scenario: "Scenario", **sections: Mapping[str, object]) -> "Scenario":
    """The scenario with the given values of its sections replaced and validated again; None changes nothing."""
    from pydantic import ValidationError

    from scenarios.errors import UserError

    document = scenario.to_dict()
    for section, values in sections.items():
        document[section].update({k: v for k, v in values.items() if v is not None})
    try:
        return type(scenario).model_validate(document)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']}" for e in error.errors())
        raise UserError(f"these options do not make a valid scenario: {said}") from error


def _seconds(text: str) -> float:
    from scenarios.errors import UserError

    unit = DURATION_UNITS_S.get(text[-1:])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError as error:
        raise UserError(f"--budget must be a number of seconds, or end in s, m or h; got {text}") from error
