"""`autotune report` and `autotune compare`: tell what a study found, again and beside another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.console import JsonOption, emit_json, next_step, out, table

if TYPE_CHECKING:
    from reports.quantity import Quantity
    from reports.view import Answer

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a study, e.g. runs/quickstart.")]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the report in the browser.")]
STYLES = {"good": "green", "bad": "red", "open": "yellow"}


def register(app: typer.Typer) -> None:
    app.command()(report)
    app.command()(compare)


def report(run: RunArgument, open_: OpenOption = False, json: JsonOption = False) -> None:
    """Write a study's report.html and print its answer."""
    from reports import html, records, view

    path = html.write(run)
    answer = view.answer(records.read(run))
    if json:
        emit_json({"report": str(path), **answer.to_dict()})
    else:
        print_answer(answer)
        out.print(f"\nreport: {path}", markup=False, soft_wrap=True)
    if open_:
        typer.launch(path.resolve().as_uri())
    if not json:
        next_step(_next(answer, run))


def compare(first: RunArgument, second: RunArgument, json: JsonOption = False) -> None:
    """Put two studies' answers side by side, and say what differs by more than luck."""
    from autotune.differences import differences_table
    from reports import compare as comparison
    from reports import records
    from reports.quantity import value_text

    found = comparison.compare(records.read(first), records.read(second))
    if json:
        emit_json(found.to_dict())
        return
    for answer in (found.first, found.second):
        for said in filter(None, (answer.simulated, answer.dummy)):
            out.print(f"[bold black on yellow] {_escaped(answer.study)}: {_escaped(said)} [/]")
    for caveat in found.caveats:
        out.print(f"[yellow]not comparable:[/] {caveat}")
    names = [_escaped(name) for name in (str(first), str(second))]
    answers = table("Answers", "", *names)
    answers.add_row("outcome", *(a.outcome.replace("_", " ") for a in (found.first, found.second)))
    for row in found.rows:
        answers.add_row(_escaped(row.label), _cell(row.first), _cell(row.second))
    out.print(answers)
    out.print(_told(found.gain))
    if found.beyond_luck:
        out.print(differences_table("\nOne hold of both, the same requests", found.beyond_luck, *names))
    knobs = table("Knobs that differ", "knob", *names)
    for difference in found.differences:
        values = (_escaped(value_text(value)) for value in (difference.first, difference.second))
        knobs.add_row(_escaped(difference.knob), *values)
    out.print(knobs if found.differences else "The configurations are equal.")
    next_step(f"autotune report {first}")


def _told(gain: "Quantity | None") -> str:
    """Whether the second's score is another than the first's."""
    if gain is None or gain.value is None or gain.low is None or gain.high is None:
        return "Scores: not measured on the same blocks of traffic; whether they differ cannot be told."
    verdict = "not significant" if gain.low <= 1 <= gain.high else "significant"
    return f"Scores, second / first: {gain.value:.3f}, 95 % interval {gain.low:.3f} to {gain.high:.3f}: {verdict}."


def print_answer(answer: "Answer") -> None:
    """The first screen of the report, as a table that fits 80 columns."""
    for said in filter(None, (answer.simulated, answer.dummy)):
        out.print(f"[bold black on yellow] {_escaped(said)} [/]")
    style = {"tuned": "green", "keep_defaults": "green"}.get(answer.outcome, "yellow")
    out.print(f"[bold {style}]{_escaped(answer.headline)}[/]")
    if answer.reason:
        out.print(_escaped(answer.reason))
    named = f"trial {answer.trial}" if answer.trial else ""
    figures = table("", "", "defaults", named, "")
    for row in answer.rows:
        judged = f"[{STYLES[row.standing]}]{_escaped(row.judgement)}[/]"
        figures.add_row(_escaped(row.label), _cell(row.default), _cell(row.winner), judged)
    if answer.rows:
        out.print(figures)
    out.print(f"[{STYLES[answer.certified]}]{_escaped(answer.certification)}[/]")
    if answer.changed:
        from reports.quantity import assignments

        out.print(f"changed: {assignments(answer.changed)}", markup=False)
    for block in answer.deploy:
        out.print(f"\n[bold]{_escaped(block.label)}[/]")
        out.print(block.text, markup=False, soft_wrap=True)


def _cell(shown: "Quantity | None") -> str:
    if shown is None:
        return ""
    lines = (shown.text, shown.interval, shown.note)
    return _escaped("\n".join(line for line in lines if line))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _next(answer: "Answer", run: Path) -> str:
    if answer.outcome == "unfinished":
        return answer.command if "--resume" in answer.command else f"{answer.command} --resume"
    if answer.outcome == "none_feasible":
        return "relax a target or widen search.knobs in the scenario, then run it again"
    return f"autotune replay {run} {answer.trial}"
