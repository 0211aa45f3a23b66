"""The benchmark as Markdown. Knows nothing of how a figure came about."""

from collections.abc import Sequence
from typing import Any

from peers import OURS
from summary import Row, Verdict

_HEAD = (
    "| generator | rate/s | arrivals, D (noise) | TTFT inflation P50 / P95 / P99, ms "
    "| TPOT inflation P50 / P95 / P99, ms | errors | CPU, ms/request | memory, MB | connections | runs |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)
_INTRODUCTION = (
    "Written by `make bench-load` on {day}: {cpu}, {cores} cores, Linux {kernel}, Python {python}. "
    "{seconds:g} s a cell; medians over the runs of the last column. What is measured and how: [load-benchmark.md]"
    "(../../docs/load-benchmark.md).\n"
)
_FREEZE_HEAD = (
    "| generator | reported P95 / P99, ms | true P95 / P99, ms | truth/reported P95 / P99 | truth taken from | runs |\n"
    "|---|--:|--:|--:|---|--:|\n"
)


def markdown(document: dict[str, Any], found: Sequence[Verdict]) -> str:
    host = document["host"]
    summary: list[Row] = document["summary"]
    parts = [
        "# Load generators side by side\n",
        _INTRODUCTION.format(**host, seconds=document["settings"]["seconds"], day=document["created"][:10]),
        "## Targets\n",
        "| target | | measured |\n|---|---|---|\n"
        + "".join(f"| {v.target} | {_word(v.met)} | {v.figure} |\n" for v in found),
    ]
    for rate in sorted({row["rate"] for row in summary if row["kind"] == "load"}):
        parts += [f"## {rate:g} streaming requests/s\n", _HEAD + "".join(_lines(document, summary, rate))]
    parts += [
        "## A server that stands still for 2 s, at 100 requests/s\n",
        _freeze(summary),
        "## The generators\n",
        _peers(document),
    ]
    return "\n".join(parts)


def _word(met: bool | None) -> str:
    return {True: "met", False: "**not met**", None: "not measured"}[met]


def _lines(document: dict[str, Any], summary: Sequence[Row], rate: float) -> list[str]:
    rows = {(r["peer"], r["workers"]): r for r in summary if r["kind"] == "load" and r["rate"] == rate}
    lines = [_line(row) for (_, _), row in sorted(rows.items(), key=lambda item: (item[0][0] != OURS, item[0]))]
    for peer, reason in document["not_tried"].get(f"{rate:g}", {}).items():
        lines.append(f"| {peer} | {reason} | | | | | | | | |\n")
    return lines


def _line(row: Row) -> str:
    name = row["peer"] if row["workers"] == 1 else f"{row['peer']}, {row['workers']} workers"
    name = f"**{name}**" if row["peer"] == OURS else name
    runs = str(row["repeats"]) + "".join(f"; {reason}" for reason in row["failed"])
    distance = f"{_n(row, 'arrival_distance', '.3f')} ({_n(row, 'arrival_noise', '.3f')})"
    return (
        f"| {name} | {_n(row, 'rate_rps', '.0f')} | {distance} "
        f"| {_three(row, 'ttft_inflation')} | {_three(row, 'tpot_inflation')} | {row['errors']} "
        f"| {_n(row, 'cpu_ms_per_request', '.2f')} | {_n(row, 'peak_pss_mb', '.0f')} "
        f"| {_n(row, 'connections', '.0f')} | {runs} |\n"
    )


def _three(row: Row, name: str) -> str:
    return " / ".join(_n(row, f"{name}_p{p}_ms", ".3g") for p in (50, 95, 99))


def _n(row: Row, name: str, form: str) -> str:
    return "–" if row.get(name) is None else format(row[name], form)


def _freeze(summary: Sequence[Row]) -> str:
    lines = [_FREEZE_HEAD]
    for row in sorted((r for r in summary if r["kind"] == "freeze"), key=lambda r: (r["peer"] != OURS, r["peer"])):
        cells = [
            " / ".join(_n(row, f"{name}_p{p}{unit}", form) for p in (95, 99))
            for name, unit, form in (
                ("reported", "_ms", ".0f"),
                ("true", "_ms", ".0f"),
                ("truth_over_reported", "", ".3f"),
            )
        ]
        runs = str(row["repeats"]) + "".join(f"; {reason}" for reason in row["failed"])
        lines.append(f"| {row['peer']} | {' | '.join(cells)} | {row.get('truth_from', '–')} | {runs} |\n")
    return "".join(lines)


def _peers(document: dict[str, Any]) -> str:
    lines = ["| generator | version | arrivals | connections | settings |\n|---|---|---|---|---|\n"]
    for name, peer in document["peers"].items():
        version = peer.get("version") or f"not run: {peer['unavailable']}"
        lines.append(f"| {name} | {version} | {peer['arrivals']} | {peer['connections']} | {peer['settings']} |\n")
    return "".join(lines)
