"""`autotune bench`: one configuration, measured. `autotune replay`: a trial of a study, measured again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from autotune.console import JsonOption, emit_json, err, next_step, out, table
from autotune.runs import fresh_folder, make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from harness.bench import Loaded, Session
    from harness.load.fleet import Fleet
    from harness.measurement import Measurement
    from harness.subject import Subject
    from harness.versus import Difference
    from scenarios.space import SearchSpace, Value
    from tuners.evaluate import Evaluation
    from tuners.results import Reference, TrialResult

R = TypeVar("R")
SHARE_OF_CAPACITY = 0.85  # where to measure when nobody names a rate

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.")]


def bench(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or a name from `autotune scenarios list`.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KNOB=VALUE", help="A knob; may repeat.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests/s. Default: the scenario's, or 85 % of capacity.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the hold. Default: budget.certify_s.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the traffic.", min=0)] = 1,
    run: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/bench-<scenario>, -2 …")] = None,
    workers: Annotated[int, typer.Option(help="Load processes on this machine.", min=0)] = 1,
    remote_workers: Annotated[
        int, typer.Option(help="Load processes to wait for, started elsewhere by `autotune load-worker`.", min=0)
    ] = 0,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="Where remote workers find us, such as 0.0.0.0:5557.")
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Measure one configuration under the scenario's traffic."""
    from autotune.live import Watch
    from autotune.named import unknown
    from harness.bench import session
    from harness.ledger import write_whole
    from harness.subject import prepare
    from scenarios.errors import UserError
    from scenarios.load import dump_yaml, load

    if rate is not None and rate <= 0:
        raise UserError(f"--rate must be > 0, got {rate:g}")
    fleet = _fleet(workers, remote_workers, listen)
    wanted = load(scenario, unknown)
    folder = run or fresh_folder(f"bench-{wanted.name}")
    with Watch(err, quiet=quiet or json) as watch:
        subject = prepare(wanted, folder, watch, build=True, fleet=fleet)
        make_folder(folder)
        write_whole(folder / "scenario.yaml", dump_yaml(wanted))
        space = subject.space()
        config = space.complete(dict(_assignment(space, text) for text in set_ or []))
        recorded = _recorded_reference(Path(scenario))
        with session(subject, config, folder / "engine") as s:
            _settle(s, recorded, same_as_default=config == space.default())
            s.warm_up(seed + 900)
            loaded = _hold(s, rate, seconds or wanted.budget.certify_s, seed)
    _show(subject, loaded, json=json)


def replay(
    run: Annotated[Path, typer.Argument(help="The folder of a study.")],
    trial: Annotated[int, typer.Argument(help="Number of the trial; 0 is the default configuration.", min=0)],
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Measure a trial of a study again, on the same traffic, and say whether it differs by more than luck."""
    from autotune.live import Watch
    from harness.bench import session
    from harness.ledger import read
    from harness.subject import prepare
    from scenarios.errors import UserError
    from scenarios.load import load
    from scenarios.space import ServingConfig
    from tuners.evaluate import Hints, evaluate
    from tuners.laboratory import SEEDS_PER_WORKLOAD_SEED
    from tuners.results import Reference, TrialResult
    from tuners.settle import resolved

    ledger = read(run / "ledger.jsonl")
    if (step := f"trial/{trial:03d}") not in ledger:
        there = [name.removeprefix("trial/") for name in ledger if name.startswith("trial/")]
        raise UserError(f"{run} has no trial {trial} (it has {', '.join(there) or 'none'})")
    before = TrialResult.model_validate(ledger[step])
    if not before.runs:
        raise UserError(f"trial {trial} was never under load ({before.trial.why}): there is nothing to replay")
    scenario = load(run / "scenario.yaml")
    root = fresh_folder("replay", below=run)
    with Watch(err, quiet=quiet or json) as watch:
        subject = resolved(prepare(scenario, root, watch, build=False), Reference.model_validate(ledger["reference"]))
        config = ServingConfig(scenario.engine.name, before.trial.knobs)
        known = before.trial.score if scenario.objective == "goodput" else None
        rate = before.runs[-1].measurement.rate_rps if before.runs else None
        with session(subject, config, root / f"{trial:03d}") as s:
            seed = scenario.workload.seed * SEEDS_PER_WORKLOAD_SEED
            s.warm_up(seed + 900)
            hints = Hints(known or 1.0, near=bool(known))
            after = _until_valid(s, lambda: evaluate(s, scenario, rate_rps=rate, seed=seed, hints=hints))
            differ = _hold_again(s, run, before)
    _compare(before, after, config.digest == before.trial.config_digest, differ, json=json)


def _fleet(local: int, remote: int, listen: str | None) -> "Fleet":
    from harness.load.fleet import Fleet, parse_address
    from scenarios.errors import UserError

    if local + remote == 0:
        raise UserError("--workers 0 needs --remote-workers: somebody must generate the load")
    if bool(remote) != (listen is not None):
        raise UserError("--listen is needed with --remote-workers, and only there: the address at which they find us")
    if listen is None:
        return Fleet(local)
    host, port = parse_address(listen)
    if port == 0:
        raise UserError("--listen needs a port that remote workers can know beforehand, got 0")
    return Fleet(local, remote, (host, port))


def _assignment(space: "SearchSpace", text: str) -> tuple[str, "Value"]:
    from scenarios.errors import UserError

    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set must be KNOB=VALUE, got {text}")
    return name, space[name].parse(value)


def _recorded_reference(scenario: Path) -> "Reference | None":
    """The reference of the study that this scenario file belongs to: same words, same targets."""
    from harness.ledger import read
    from tuners.results import Reference

    ledger = scenario.with_name("ledger.jsonl")
    steps = read(ledger) if scenario.name == "scenario.yaml" and ledger.exists() else {}
    return Reference.model_validate(steps["reference"]) if "reference" in steps else None


def _settle(s: "Session", recorded: "Reference | None", *, same_as_default: bool) -> None:
    """Words and targets: as recorded, or worked out on the engine that runs now."""
    from dataclasses import replace

    from harness.observe import Target
    from scenarios.errors import UserError
    from tuners.settle import build_words, median_ms, resolve_targets, resolved

    if recorded is not None:
        s.subject = resolved(s.subject, recorded)
        return
    s.subject = replace(s.subject, words=build_words(s))
    scenario = s.subject.scenario
    unloaded_ms: dict[str, float] = {}
    if not scenario.targets_are_absolute:
        if not same_as_default:
            s.subject.observer.note("targets are relative: taken from this configuration's own unloaded latency")
        loaded = _until_valid(s, lambda: s.unloaded(seed=950))
        unloaded_ms = {metric: median_ms(loaded, metric) for metric in scenario.targets}
    targets_ms = resolve_targets(scenario, unloaded_ms)
    if not targets_ms:
        raise UserError("slo: nothing to judge")
    s.subject = replace(
        s.subject, targets=tuple(Target(m, t.percentile, targets_ms[m]) for m, t in scenario.targets.items())
    )


def _hold(s: "Session", rate: float | None, seconds: float, seed: int) -> "Loaded":
    from tuners.evaluate import Hints, evaluate

    arrivals = s.subject.scenario.workload.arrivals
    if arrivals.process == "closed":
        return _until_valid(s, lambda: s.closed(seconds, seed, "hold"))
    rate = rate or (arrivals.rate.rps if arrivals.rate else None)
    if rate is None:
        s.subject.observer.note("no rate asked: looking for the capacity first")
        goodput = s.subject.scenario.model_copy(update={"objective": "goodput"})
        found = _until_valid(
            s, lambda: evaluate(s, goodput, rate_rps=None, seed=seed, hints=Hints(2.0), prefix="capacity-")
        )
        s.subject.observer.note(f"  {found.why}")
        times = arrivals.rate.times_default_capacity if arrivals.rate else None
        rate = (times or SHARE_OF_CAPACITY) * found.score or 1.0
    held_rps = rate
    return _until_valid(s, lambda: s.hold(held_rps, seconds, seed, "hold", until_certain=False))


def _hold_again(s: "Session", run: Path, before: "TrialResult") -> "tuple[Difference, ...]":
    """The trial's longest hold that was not cut short, once more on the same requests, and what differs."""
    from harness.versus import differences, reread

    holds = [(r.measurement, reread(run / r.folder)) for r in before.runs if r.measurement.kind == "hold"]
    whole = [(measured, seen) for measured, seen in holds if seen is not None]
    if not whole:
        s.subject.observer.note("no whole hold of this trial is left to compare with, request by request")
        return ()
    measured, seen = max(whole, key=lambda hold: hold[0].n_judged)
    seconds = measured.window_s[1] - measured.window_s[0]
    rate = measured.rate_rps

    def again() -> "Loaded":
        if rate is None:
            return s.closed(seconds, measured.seed, "again")
        return s.hold(rate, seconds, measured.seed, "again", until_certain=False)

    return differences(seen, _until_valid(s, again).observed)


def _until_valid(s: "Session", measure: "Callable[[], R]") -> "R":
    """Void runs are repeated ``budget.void_retries`` times, as in a study; then the reason ends the command."""
    from harness.errors import TrialVoid

    for _ in range(s.subject.scenario.budget.void_retries):
        try:
            return measure()
        except TrialVoid as err:
            s.subject.observer.note(f"  void, repeated: {err}")
    return measure()


def _show(subject: "Subject", loaded: "Loaded", *, json: bool) -> None:
    m, verdict = loaded.measurement, loaded.verdict
    if json:
        document = {"measurement": m.model_dump(mode="json"), "verdict": verdict.model_dump(mode="json")}
        emit_json({"run": str(subject.root), **document})
        return
    rate = f"{m.rate_rps:.2f} requests/s" if m.rate_rps else "closed loop"
    latency = table(
        f"{subject.model.label} on {subject.engine_version}, {rate}", "latency, ms", "value", "95 % interval"
    )
    for name, estimate in m.metrics.items():
        if name.rsplit("_", 2)[0].rpartition(".")[2] in ("ttft", "tpot", "e2e"):
            latency.add_row(
                _label(name), _number(estimate.value), f"{_number(estimate.low)} to {_number(estimate.high)}"
            )
    out.print(latency)
    targets = table("\ntargets", "promise", "missed", "of", "evidence", "verdict")
    for slo in verdict.slo:
        targets.add_row(
            f"{slo.metric} P{slo.percentile:g} <= {slo.target_ms:.1f} ms",
            str(slo.misses),
            str(slo.n),
            f"ln E {slo.log_e_pass:+.1f} pass, {slo.log_e_fail:+.1f} fail",
            slo.outcome,
        )
    out.print(targets)
    for reason in verdict.reasons:
        out.print(f"  {reason}", soft_wrap=True, markup=False)
    out.print(_audit(m))
    _tell_engine(m)
    out.print(f"records: {subject.root / m.records_path}", soft_wrap=True)
    if subject.engine.name != "attached":
        next_step(f"autotune tune {subject.root / 'scenario.yaml'}")


def _audit(m: "Measurement") -> "Table":
    from reports.tables import disturbances

    a = m.audit
    audit = table("\naudit of the load", "what", "value")
    audit.add_row("offered / sent, requests/s", f"{_number(a.offered_rps)} / {a.achieved_rps:.2f}")
    audit.add_row(
        "send lateness P50 / P99, ms (limit)",
        f"{a.send_lateness_p50_ms:.3f} / {a.send_lateness_p99_ms:.3f} ({a.send_lateness_limit_ms:.1f})",
    )
    audit.add_row("event-loop lag P99, ms", f"{a.loop_lag_p99_ms:.3f}")
    audit.add_row(
        "stamped after the kernel P99, ms", "-" if a.receive_lag_p99_ms is None else f"{a.receive_lag_p99_ms:.3f}"
    )
    audit.add_row("generator CPU, share of a core", f"{a.generator_cpu_share:.1%}")
    for label, text in disturbances(a):
        audit.add_row(label, text)
    audit.add_row("answered / failed", f"{m.n_judged} judged, {sum(m.errors.values())} failed")
    audit.add_row("goodput, requests/s", f"{m.goodput_rps:.2f}")
    audit.add_row("output, tokens/s", f"{m.throughput_output_tps:.1f}")
    return audit


def _tell_engine(m: "Measurement") -> None:
    """What the engine's own /metrics and its GPUs say, where they do."""
    from rich.markup import escape

    from reports.engine_tables import gpu_facts, server_facts

    told = {
        "the server's own figures": server_facts(m.server) if m.server else (),
        "its GPUs": gpu_facts(m.telemetry.gpu) if m.telemetry.gpu else (),
    }
    for title, facts in told.items():
        if facts:
            shown = table(f"\n{title}", "what", "value")
            for label, text in facts:
                shown.add_row(label, escape(text))
            out.print(shown)
    for line in m.server.disagreements if m.server else ():
        out.print(f"[yellow]server and client disagree:[/] {escape(line)}", soft_wrap=True)


def _label(metric: str) -> str:
    name, percentile = metric.removesuffix("_ms").rsplit("_p", 1)
    traffic_class, _, name = name.rpartition(".")
    return f"{traffic_class} {name.upper()} P{percentile}".strip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _compare(
    before: "TrialResult", after: "Evaluation", same_config: bool, differ: "Sequence[Difference]", *, json: bool
) -> None:
    from autotune.differences import differences_table, document

    ratio = after.score / before.trial.score if before.trial.score else None
    if json:
        emit_json(
            {
                "trial": before.trial.number,
                "same_config": same_config,
                "recorded": before.trial.score,
                "replayed": after.score,
                "ratio": ratio,
                "differences": document(differ),
            }
        )
        return
    result = table(f"trial {before.trial.number:03d} again", "", "score", "")
    result.add_row("recorded", _number(before.trial.score), before.trial.why)
    result.add_row("replayed", _number(after.score), after.why)
    out.print(result)
    if ratio is not None:
        out.print(f"replayed / recorded: {ratio:.3f}")
    if differ:
        out.print(differences_table("\nthe same requests", differ, "recorded", "replayed"))
