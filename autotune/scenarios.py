"""`autotune scenarios`: list, show and check scenario files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.console import JsonOption, emit_json, next_step, out, table

if TYPE_CHECKING:
    from scenarios.spec import Scenario
    from scenarios.summary import ClassTraffic, TraceSummary, TrafficSummary

REQUESTS_SHOWN = 1000  # about so many are made where nobody says how many seconds

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
def show(
    scenario: Source,
    traffic: Annotated[bool, typer.Option("--traffic", help="What its traffic looks like instead.")] = False,
    rate: Annotated[float | None, typer.Option(help="With --traffic: requests/s. Default: its own, or 1.")] = None,
    seconds: Annotated[float | None, typer.Option(help="With --traffic: default about 1,000 requests.")] = None,
    seed: Annotated[int, typer.Option(help="With --traffic: seed of the schedule.", min=0)] = 1,
    json: JsonOption = False,
) -> None:
    """One scenario with every default written out; or its traffic, before anything is sent."""
    from autotune.named import unknown
    from scenarios.load import dump_yaml, load

    resolved = load(scenario, unknown)
    if traffic:
        _show_traffic(resolved, rate, seconds, seed, json=json)
    elif json:
        emit_json(resolved.to_dict())
    else:
        typer.echo(dump_yaml(resolved), nl=False)


@app.command()
def check(paths: Sources, json: JsonOption = False) -> None:
    """Say everything that is wrong with scenario files. Exit code 2 if anything is."""
    from dataclasses import asdict

    from rich.markup import escape

    from autotune.named import unknown
    from scenarios.load import check as problems_of

    files = [file for path in paths for file in _scenario_files(path)]
    found = {file: problems_of(str(file), unknown) for file in files}
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


def _show_traffic(scenario: "Scenario", rate: float | None, seconds: float | None, seed: int, *, json: bool) -> None:
    from dataclasses import asdict

    from scenarios.errors import UserError
    from scenarios.replay import replay
    from scenarios.summary import summarise
    from scenarios.words import Words, candidates

    workload = scenario.workload
    asked = workload.arrivals.rate.rps if workload.arrivals.rate else None
    if workload.arrivals.process == "trace" and workload.trace is not None:
        asked = asked or replay(workload.trace).rate_rps
    rate_rps = rate or asked or 1.0
    duration_s = seconds or REQUESTS_SHOWN / rate_rps
    if rate_rps <= 0 or duration_s <= 0:
        raise UserError(f"--rate and --seconds must be > 0, got {rate_rps:g} and {duration_s:g}")
    words = Words.build(candidates(), None)
    found = summarise(workload, words, rate_rps=rate_rps, duration_s=duration_s, seed=seed)
    if json:
        emit_json(asdict(found))
    else:
        _print_traffic(scenario.name, found)


def _print_traffic(name: str, found: "TrafficSummary") -> None:
    from rich.markup import escape

    when = "no times (closed loop)" if found.duration_s is None else f"{found.duration_s:,.1f} s"
    rows = table(f"Traffic of {name}, seed {found.seed}", "what", "value")
    rows.add_row("requests", f"{found.requests:,} in {when}" if found.duration_s else f"{found.requests:,}, {when}")
    if found.achieved_rps is not None:
        rows.add_row("rate asked / scheduled, requests/s", f"{found.rate_rps:.3f} / {found.achieved_rps:.3f}")
    if (fit := found.arrivals) is not None:
        near = "within" if fit.distance <= fit.noise else "beyond"
        shown = f"{fit.distance:.4f} ({near} noise, {fit.noise:.4f})"
        rows.add_row(f"distance of {fit.gaps:,} gaps to {fit.process}", shown)
    rows.add_row("prompt tokens in prefixes seen before", f"{found.shared_prefix:.1%}")
    rows.add_row("SHA-256 of all that is sent", found.digest[:16])
    out.print(rows)
    for part in found.parts:
        _print_class(part)
    for trace in found.traces:
        _print_trace(trace)
    for problem in (p for trace in found.traces for p in trace.first_problems):
        out.print(f"  {escape(problem)}", soft_wrap=True)


def _print_class(part: "ClassTraffic") -> None:
    head = f"\n{part.name or 'every request'}: {part.requests:,} requests"
    if part.rate_rps is not None:
        head += f", {part.rate_rps:.3f}/s"
    if part.sessions:
        head += f", {part.sessions:,} conversations"
    rows = table(head, "per request", "mean", "P50", "P95", "P99", "most")
    quantities = {
        "prompt tokens": part.prompt_tokens,
        "output tokens": part.output_tokens,
        "turns of a conversation": part.turns,
        "pause before a turn, s": part.pause_s,
    }
    for name, d in quantities.items():
        if d is not None:
            rows.add_row(name, *(f"{value:,.1f}" for value in (d.mean, d.p50, d.p95, d.p99, d.max)))
    out.print(rows)


def _print_trace(trace: "TraceSummary") -> None:
    rows = table(f"\n{Path(trace.file).name}", "rows", "count")
    rows.add_row("in the file", f"{trace.rows:,}")
    rows.add_row("malformed, left out", f"{trace.malformed:,}")
    for reason, n in trace.unusable.items():
        rows.add_row(f"left out: {reason}", f"{n:,}")
    rows.add_row("in the window, after thinning", f"{trace.replayed:,} in {trace.sessions:,} sessions")
    rows.add_row("length and own rate", f"{trace.seconds:,.1f} s, {trace.rate_rps:.3f} requests/s")
    rows.add_row("cut to the longest asked", f"{trace.shortened:,}")
    out.print(rows)
