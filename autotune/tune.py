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
    from harness.subject import Subject
    from lifecycle.registry.sync import Attempt
    from scenarios.space import SearchSpace
    from scenarios.spec import Scenario
    from tuners.results import Winner
    from tuners.study import Asked, Study

DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600}


def tune(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or a name from `autotune scenarios list`.")],
    run: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/<scenario>, or -2, -3 … beside it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished run.")] = False,
    trials: Annotated[int | None, typer.Option(help="Instead of budget.trials.", min=1)] = None,
    budget: Annotated[str | None, typer.Option(help="Wall-clock limit of the search, e.g. 90s, 20m, 2h.")] = None,
    tuner: Annotated[
        str | None, typer.Option(help="Instead of search.tuner: gp, staged, tpe, cma, random, grid …")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of search.seed.", min=0)] = None,
    control: Annotated[
        str | None, typer.Option(help="random: search again at random for as many seconds, to compare with.")
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option("--from", help="Run folder, or mlflow:RUN_ID, whose best configurations are tried first."),
    ] = None,
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
    from threadpoolctl import threadpool_limits

    from autotune import dry_run as dry_runs
    from autotune.live import Watch
    from autotune.named import unknown
    from harness.load.fleet import Fleet
    from harness.subject import prepare
    from lifecycle.registry.sync import mirror_all
    from reports import html
    from scenarios.errors import UserError
    from scenarios.load import absolute_study, load
    from tuners.study import Asked

    changes = {"trials": trials, "wall_clock_s": _seconds(budget) if budget else None}
    earlier = [absolute_study(name, Path.cwd()) for name in from_ or ()]
    search = {"tuner": tuner, "seed": seed, "control": control, "transfer": earlier or None}
    wanted = _overridden(load(scenario, unknown), budget=changes, search=search)
    asked_otherwise = any(value is not None for value in (*changes.values(), *search.values()))
    if resume and asked_otherwise:
        raise UserError(
            "--resume takes no --trials, --budget, --tuner, --seed, --control or --from: it goes on as the study was "
            "asked for. Leave them out, or begin anew without --resume"
        )
    trackers = (tracker or ["mlflow"]) if track else []
    _find_plugins(wanted, trackers, resume=resume)
    if dry_run:
        dry_runs.show(wanted, assume_gpus, json=json)
        raise typer.Exit
    if assume_gpus is not None:
        raise UserError("--assume-gpus has a meaning only with --dry-run")
    folder = study_folder(run, wanted.name, resume=resume)
    if resume and (folder / "scenario.yaml").exists():
        wanted = load(folder / "scenario.yaml")  # as it was asked when the study began
    try:
        # One BLAS thread: the search's matrices are small, and spinning threads would disturb what is measured.
        with Watch(err, quiet=quiet or json) as watch, threadpool_limits(1, user_api="blas"):
            watch.note(f"run folder: {folder}")
            make_folder(folder)
            subject = prepare(wanted, folder, watch, build=True, fleet=Fleet(workers))
            study = _study(subject, watch, Asked(scenario, shlex.join(["autotune", *sys.argv[1:]])))
            winner = study.run()
            watch.begin("report", None)
            page = html.write(folder)
            mirrors = []
            if trackers:
                watch.begin("record", None)
                mirrors = mirror_all(folder, trackers)
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


def _study(subject: "Subject", watch: "Watch", asked: "Asked") -> "Study":
    """The study that the scenario describes, with everything that it names found."""
    from harness import plugins
    from harness.engines.base import presets
    from tuners.base import Expecting
    from tuners.laboratory import Laboratory
    from tuners.study import Study
    from tuners.transfer import transferred

    search = subject.scenario.search
    named = search.transfer
    offered = subject.space()  # a preset is the engine's own, as the defaults are: no narrowing applies to it
    space = offered.narrowed(search.knobs)
    for notice in space.notices:
        watch.note(notice)
    check_free(space)
    seed_of_control = search.seed + 1  # a stream of its own: `--tuner random --control random` compares two searches
    tuner = plugins.load("tuners", search.tuner)(space, search.seed)
    laboratory = Laboratory(subject, space)
    if isinstance(tuner, Expecting) and subject.scenario.objective == "goodput":
        laboratory.expects = tuner.expects
    return Study(
        laboratory,
        space,
        tuner,
        watch,
        asked,
        presets={name: offered.complete(knobs) for name, knobs in presets(subject.engine).items()},
        transfer=(lambda start: transferred([_earlier(n, subject.root) for n in named], space, start))
        if named
        else None,
        control_arm=plugins.load("tuners", search.control)(space, seed_of_control) if search.control else None,
    )


def _earlier(name: str, root: Path) -> Path:
    """The folder of an earlier study's ledger: as it was named, or fetched from MLflow."""
    tracker, _, run_id = name.partition(":")
    if tracker != "mlflow" or not run_id:
        return Path(name)
    from lifecycle.registry.mlflow_tracker import ledger_from

    return ledger_from(run_id, root / "earlier" / run_id).parent


def _find_plugins(wanted: "Scenario", trackers: "Sequence[str]", *, resume: bool) -> None:
    """Everything that is named must be there before anything is begun."""
    from harness import plugins
    from scenarios.errors import UserError

    plugins.load("tuners", wanted.search.tuner)
    for name in trackers:
        plugins.load("trackers", name)
    for name in wanted.search.transfer if not resume else ():
        if not name.startswith("mlflow:") and not (Path(name) / "ledger.jsonl").exists():
            raise UserError(
                f"{name} holds no study to learn from: name a run folder, such as runs/chat, or mlflow:RUN_ID"
            )


def check_free(space: "SearchSpace") -> None:
    """Raises UserError where nothing is left to tune."""
    from scenarios.errors import UserError

    if not space.free:
        raise UserError(f"{space.engine}: no knob has more than one value: nothing to tune; use `autotune bench`")


def _overridden(scenario: "Scenario", **sections: Mapping[str, object]) -> "Scenario":
    """The scenario with the given values of its sections replaced and validated again; None changes nothing."""
    from pydantic import ValidationError

    from scenarios.errors import UserError

    if (control := sections["search"].get("control")) not in (None, "random"):
        raise UserError(f"--control must be random, got {control}")
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
