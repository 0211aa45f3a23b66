"""The benchmark's tables: from the courses of all cells to the lines that people read. Pure.

Knows nothing of how a course was run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search import plot
from search.ablations import ABLATIONS
from search.arms import ARMS, OURS
from search.courses import Course
from search.regret import (
    ALPHA,
    WITHIN,
    Comparison,
    Interval,
    compared,
    curve,
    holm,
    median,
    reached,
    time_to,
)
from search.worlds import NAMES

LAUNCHES = (5, 10, 20)
POINTS = 60  # of a curve
SHARES = (0.25, 0.5, 1.0)  # of the wall-clock at which regret is told
RANDOM, PLAIN = "random", "plain tpe"
HALF, THIRD = 0.5, 1 / 3  # what is asked: time within 5 % / random's; wasted launches / plain TPE's
WORLDS_ASKED = 4

Courses = Mapping[str, Course]  # "world/arm/seed"
Pair = tuple[str, str]  # world, arm

INTRODUCTION = """\
`make bench-search`. Every figure but those of `llamacpp` is *simulated*: no GPU was measured. Regret: 1 - capacity of
the configuration that the arm would pick by then / capacity of the best of all, both from long runs in virtual time.
Wall-clock is modelled: cold starts (compiled code kept from launch to launch), warm-ups, ramps, holds. Medians over
seeds with 95 % bootstrap intervals; a time is "> budget" where more than half of the seeds never got there. p:
Wilcoxon signed-rank over seeds on the regret at the end, Holm over the worlds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in one world."""

    world: str
    arm: str
    seeds: int
    hours: float
    at: tuple[Interval, ...]  # regret at SHARES of the hours
    after: tuple[float, ...]  # median regret after LAUNCHES
    within_h: Interval
    reached: float
    launches: float
    wasted: float  # share of all launches
    against_random: Comparison | None  # regret at the end, on the same seeds


def summarise(courses: Courses, hours: Mapping[str, float]) -> list[Row]:
    """Worlds and arms in the order in which they are declared; Holm over the worlds for each arm."""
    order = [*ARMS, *ABLATIONS]
    by: dict[tuple[str, str], dict[str, Course]] = {}
    for name, course in courses.items():
        world, arm, seed = name.split("/")
        by.setdefault((world, arm), {})[seed] = course
    pairs = sorted(by, key=lambda pair: (list(hours).index(pair[0]), order.index(pair[1])))
    against = {pair: _against(by, pair, hours[pair[0]]) for pair in pairs if pair[1] != RANDOM}
    for arm in order:
        mine = [pair for pair in pairs if pair[1] == arm and against.get(pair)]
        adjusted = holm([against[pair].p for pair in mine])  # type: ignore[union-attr]
        for pair, p in zip(mine, adjusted, strict=True):
            old = against[pair]
            assert old is not None
            against[pair] = Comparison(old.wins, old.losses, old.ties, old.p, p, old.median_difference)
    return [_row(pair, list(by[pair].values()), hours[pair[0]], against.get(pair)) for pair in pairs]


def _against(
    by: Mapping[tuple[str, str], Mapping[str, Course]], pair: tuple[str, str], hours: float
) -> Comparison | None:
    world, arm = pair
    if (world, RANDOM) not in by:
        return None
    ends = [{seed: c.regret_at(3600 * hours) for seed, c in by[world, a].items()} for a in (arm, RANDOM)]
    return compared(*ends) if ends[0].keys() & ends[1].keys() else None


def _row(pair: tuple[str, str], courses: Sequence[Course], hours: float, against: Comparison | None) -> Row:
    within = time_to(courses)
    return Row(
        world=pair[0],
        arm=pair[1],
        seeds=len(courses),
        hours=hours,
        at=tuple(median([c.regret_at(3600 * hours * share) for c in courses]) for share in SHARES),
        after=tuple(median([c.regret_after(n) for c in courses]).value for n in LAUNCHES),
        within_h=Interval(within.value / 3600, within.low / 3600, within.high / 3600),
        reached=reached(courses),
        launches=sum(c.launches for c in courses) / len(courses),
        wasted=sum(c.wasted for c in courses) / max(1, sum(c.launches for c in courses)),
        against_random=against,
    )


def of_ablated_seeds(courses: Courses) -> dict[str, Course]:
    """Of every arm what met the same traffic as the ablations."""

    def place(name: str) -> Pair:
        world, _, seed = name.split("/")
        return world, seed

    ablated = {place(name) for name in courses if name.split("/")[1] in ABLATIONS}
    return {name: course for name, course in courses.items() if place(name) in ablated}


def markdown(rows: Sequence[Row], same_seeds: Sequence[Row] = ()) -> str:
    """Tables and targets. ``same_seeds``: of the seeds on which there are ablations."""
    parts = ["# The search against its controls, simulated", INTRODUCTION]
    for world in dict.fromkeys(r.world for r in rows):
        own = [r for r in rows if r.world == world and r.arm in ARMS]
        kind = "simulated" if world in NAMES else "recorded: a real engine, measured once and replayed"
        parts.append(f"## {world} ({kind}), {own[0].hours:g} h" if own else f"## {world}")
        parts.append(_table(own))
    if same_seeds:
        parts += ["## Ablations: what each ingredient is worth", _ablations(same_seeds)]
    parts += ["## Targets", "\n".join(f"- {line}" for line in targets(rows))]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    head = [
        "arm",
        "seeds",
        *(f"regret at {share:.0%}" for share in SHARES),
        *(f"after {n} launches" for n in LAUNCHES),
        f"hours to within {WITHIN:.0%}",
        "seeds that got there",
        "launches",
        "wasted",
        "against random: better / worse / equal, p",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        name = f"**{r.arm}**" if r.arm == OURS else r.arm
        versus = "—"
        if c := r.against_random:
            versus = f"{c.wins} / {c.losses} / {c.ties}, {c.p_holm:.2g}"
        figures = [
            name,
            str(r.seeds),
            *(f"{i.value:.1%} ({i.low:.1%}–{i.high:.1%})" for i in r.at),
            *(f"{x:.1%}" for x in r.after),
            _hours(r.within_h, r.hours),
            f"{r.reached:.0%}",
            f"{r.launches:.0f}",
            f"{r.wasted:.1%}",
            versus,
        ]
        lines.append("| " + " | ".join(figures) + " |")
    return "\n".join(lines)


def _hours(interval: Interval, budget: float) -> str:
    def one(value: float) -> str:
        return f"> {budget:g}" if math.isinf(value) else f"{value:.2f}"

    return f"{one(interval.value)} ({one(interval.low)}–{one(interval.high)})"


def _ablations(rows: Sequence[Row]) -> str:
    worlds = list(dict.fromkeys(r.world for r in rows))
    seeds = max(r.seeds for r in rows if r.arm in ABLATIONS)
    lines = [
        "Median regret at a quarter, at half and at the end of the wall-clock; hours to within 5 %.",
        f"All arms on the same {seeds} seeds.",
        "",
        "| arm | " + " | ".join(worlds) + " |",
        "|---|" + "---|" * len(worlds),
    ]
    for arm in (OURS, RANDOM, *ABLATIONS):
        cells = []
        for world in worlds:
            row = next((r for r in rows if r.world == world and r.arm == arm), None)
            cells.append(
                "—"
                if row is None
                else " · ".join(f"{i.value:.1%}" for i in row.at)
                + f"; {_hours(row.within_h, row.hours).split(' (')[0]} h"
            )
        about = f"{arm}: {ABLATIONS[arm].about}" if arm in ABLATIONS else arm
        lines.append(f"| {about} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(row: Row) -> str:
    hours = _hours(row.within_h, row.hours).split(" (")[0]
    return " · ".join(f"{i.value:.1%}" for i in row.at) + f"; {hours} h"


def targets(rows: Sequence[Row]) -> list[str]:
    """What was asked, and whether it is met."""
    own = {r.world: r for r in rows if r.arm == OURS}
    other = {r.world: r for r in rows if r.arm == RANDOM}
    plain = {r.world: r for r in rows if r.arm == PLAIN}
    both = [w for w in own if w in other and w in NAMES]  # the targets are about the simulated worlds
    if not both:
        return ["not measured"]
    fast = [w for w in both if own[w].within_h.value <= HALF * min(other[w].within_h.value, other[w].hours)]
    versus = {w: own[w].against_random for w in both}
    better = [w for w, c in versus.items() if c and c.p_holm < ALPHA and c.wins > c.losses]
    worse = [w for w, c in versus.items() if c and c.p_holm < ALPHA and c.wins < c.losses]
    lines = [
        _line(
            len(fast) >= WORLDS_ASKED,
            f"within {WITHIN:.0%} in at most half of random's wall-clock (median) in {_names(fast, both)}",
            f"{WORLDS_ASKED} worlds",
        ),
        _line(
            len(better) == len(both),
            f"better than random at equal wall-clock, p < {ALPHA} after Holm, in {_names(better, both)}",
            "all",
        ),
        _line(not worse, f"significantly worse than random in {_names(worse, both)}", "none"),
    ]
    if wasting := [w for w in both if w in plain]:
        mine, theirs = (_wasted([r[w] for w in wasting]) for r in (own, plain))
        told = f"wasted launches: {mine:.1%} of all, plain TPE {theirs:.1%}"
        lines.append(_line(mine < THIRD * theirs, told, "under a third of plain TPE's"))
    return lines


def _line(met: bool, told: str, asked: str) -> str:
    return f"{'met' if met else 'NOT met'}: {told}. Asked: {asked}"


def _names(some: Sequence[str], every: Sequence[str]) -> str:
    return f"{len(some)} of {len(every)}" + (f" ({', '.join(some)})" if some else "")


def _wasted(rows: Sequence[Row]) -> float:
    return sum(r.wasted * r.launches * r.seeds for r in rows) / sum(r.launches * r.seeds for r in rows)


def drawn(courses: Courses, hours: Mapping[str, float]) -> str:
    """The plot of all arms that are no ablation."""
    panels: dict[str, dict[str, plot.Curve]] = {}
    for world, budget in hours.items():
        grid = [budget * k / POINTS for k in range(POINTS + 1)]
        for arm in ARMS:
            own = [c for name, c in courses.items() if name.startswith(f"{world}/{arm}/")]
            if own:
                panels.setdefault(world, {})[arm] = curve(own, lambda c, h: c.regret_at(3600 * h), grid)
    return plot.svg(panels, OURS)
