"""The exact schedule of requests that a workload and a seed stand for: when, what text, how long.

Knows nothing of servers, HTTP or time passing. The tokenizer is a function that counts.

Common random numbers: arrivals, lengths and content are drawn from independent children of one seed, each
conversation's in turn. Conversation i (a lone request is one, too) therefore has the same texts, lengths and
pauses, and the same unit-rate arrival, in every schedule of that seed, whatever its rate and however long it is.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scenarios.content import ARRIVALS, MARKS, PAST, Recorded, Source, Talk, generator, source
from scenarios.lengths import draw_lengths
from scenarios.replay import replay
from scenarios.traffic import Arrivals, Workload
from scenarios.words import Words

__all__ = ["Schedule", "ScheduledRequest", "Words", "draw_lengths", "hold", "ramp", "sequence"]

FloatArray = NDArray[np.float64]
Clock = Callable[[float], float]

GAPS_PER_DRAW = 256
NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """``t_int_ns``: intended send time since t0. ``prompt_tokens``: of everything in ``messages``.

    ``messages``: question, answer, …, question. A later turn of a ``session`` is due ``think_ns`` after the request
    ``after`` has ended; its ``t_int_ns`` is then where it would fall if answers took no time. ``after`` None: due at
    ``t_int_ns``, as are turns whose times a trace gives, and those of conversations that began before t0.
    """

    index: int
    t_int_ns: int
    messages: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int
    traffic_class: str = ""
    session: int | None = None
    turn: int = 0
    after: int | None = None
    think_ns: int = 0

    @property
    def prompt(self) -> str:
        return "".join(self.messages)


@dataclass(frozen=True)
class Schedule:
    """``rate_rps``: None where there is no single rate (ramp, sequence)."""

    requests: tuple[ScheduledRequest, ...] = field(repr=False)
    duration_s: float
    rate_rps: float | None
    seed: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that will be sent, and when. 64 hex digits."""
        content = hashlib.sha256()
        for r in self.requests:
            place = f"{r.traffic_class} {r.session} {r.turn} {r.after} {r.think_ns}"
            content.update(f"{r.index} {r.t_int_ns} {r.prompt_tokens} {r.output_tokens} {place}".encode())
            for message in r.messages:
                content.update(b"\n" + message.encode())
            content.update(b"\0")
        return content.hexdigest()


def hold(workload: Workload, words: Words, *, rate_rps: float, duration_s: float, seed: int) -> Schedule:
    """Arrivals at a constant rate, for ``duration_s``. Raises ValueError unless both are > 0, TraceError."""
    _positive(rate_rps=rate_rps, duration_s=duration_s)
    span = _Span(lambda units: units / rate_rps, rate_rps * duration_s, duration_s, rate_rps)
    return Schedule(_requests(_due(workload, words, span, seed), duration_s), duration_s, rate_rps, seed)


def ramp(
    workload: Workload, words: Words, *, start_rps: float, end_rps: float, duration_s: float, seed: int
) -> Schedule:
    """Arrivals whose rate grows exponentially: rate(t) = start (end/start)^(t/duration).

    The unit-rate process of `hold` on a stretched clock (time-change theorem: arrival u of it falls where the
    integrated rate is u). Raises ValueError unless both rates and the duration are > 0, TraceError.
    """
    _positive(start_rps=start_rps, end_rps=end_rps, duration_s=duration_s)
    growth_per_s = math.log(end_rps / start_rps) / duration_s

    def clock(units: float) -> float:
        if units < 0 or growth_per_s == 0:
            return units / start_rps
        return math.log1p(growth_per_s * units / start_rps) / growth_per_s

    expected = (end_rps - start_rps) / growth_per_s if growth_per_s else start_rps * duration_s
    due = _due(workload, words, _Span(clock, expected, duration_s), seed)
    return Schedule(_requests(due, duration_s), duration_s, None, seed)


def sequence(workload: Workload, words: Words, *, n: int, seed: int, evenly: bool = False) -> Schedule:
    """``n`` requests without times: for closed loops, and for probing one by one. A turn waits for no other.

    evenly: the classes of a mix take turns, whatever their shares. Raises ValueError if n < 1, TraceError.
    """
    _positive(n=n)
    mix = _Mix(workload, words, seed)
    talks = ((number, *mix.talk(number, evenly=evenly)) for number in itertools.count())
    due = (
        _Due(0.0, number, turn, talk, name, mix.in_sessions[name])
        for number, name, talk in talks
        for turn in range(len(talk.turns))
    )
    return Schedule(_requests(itertools.islice(due, n), 1.0), 0.0, None, seed)


def _positive(**quantities: float) -> None:
    for name, value in quantities.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value}")


class _Due(NamedTuple):
    """One request before it has its place in the schedule. ``number``: of its conversation, in order of begin."""

    t_s: float
    number: int
    turn: int
    talk: Talk
    traffic_class: str
    in_session: bool
    think_s: float = 0.0
    follows: bool = False  # due think_s after the turn before it has ended, if that one is in the schedule


def _requests(due: Iterable[_Due], duration_s: float) -> tuple[ScheduledRequest, ...]:
    """In order of time, those within the duration. Sessions are numbered as they appear."""
    placed = sorted(
        (round(d.t_s * NS_PER_S), d.number, d.turn, k, d) for k, d in enumerate(due) if 0 <= d.t_s <= duration_s
    )
    sessions: dict[int, int] = {}
    indices: dict[tuple[int, int], int] = {}
    requests = []
    for index, (t_int_ns, number, turn, _, d) in enumerate(placed):
        said = d.talk.turns[turn]
        after = indices.get((number, turn - 1)) if d.follows else None
        indices[number, turn] = index
        requests.append(
            ScheduledRequest(
                index=index,
                t_int_ns=t_int_ns,
                messages=said.messages,
                prompt_tokens=said.prompt_tokens,
                output_tokens=said.output_tokens,
                traffic_class=d.traffic_class,
                session=sessions.setdefault(number, len(sessions)) if d.in_session else None,
                turn=turn,
                after=after,
                think_ns=0 if after is None else round(d.think_s * NS_PER_S),
            )
        )
    return tuple(requests)


# -- conversations that begin at the process's times -----------------------------------------------------


class _Mix:
    """The conversations of all classes, each start given to a class at random so that requests have its share."""

    def __init__(self, workload: Workload, words: Words, seed: int) -> None:
        self._sources: dict[str, Source] = {p.name: source(p, words, seed) for p in workload.mix}
        starts = np.array([p.share / self._sources[p.name].mean_turns for p in workload.mix])
        self.mean_turns = 1 / float(starts.sum())  # since the shares of the requests sum to 1
        self.in_sessions = {name: s.in_sessions for name, s in self._sources.items()}
        self.longest_s = max(s.longest_s for s in self._sources.values())
        self._names = list(self._sources)
        self._upper = np.cumsum(starts / starts.sum())
        self._seed = seed
        self._marks = generator(seed, MARKS)
        self._drawn = dict.fromkeys(self._names, 0)

    def talk(self, number: int, *, evenly: bool = False) -> tuple[str, Talk]:
        """The class and the conversation of start ``number``: 0, 1, … in order."""
        name = self._names[number % len(self._names)] if evenly else self._class_of(self._marks)
        drawn = self._drawn[name]
        self._drawn[name] += 1
        return name, self._sources[name].talk(drawn)

    def earlier(self, number: int, begun_s: float) -> tuple[str, Talk] | None:
        """The last conversation before t0 (1), or the one before it …, if it still goes on at t0."""
        name = self._class_of(generator(self._seed, MARKS, PAST, number))
        talk = self._sources[name].earlier(number, begun_s)
        return None if talk is None else (name, talk)

    def _class_of(self, rng: Generator) -> str:
        if len(self._names) == 1:
            return self._names[0]
        return self._names[min(int(np.searchsorted(self._upper, rng.random(), side="right")), len(self._names) - 1)]


@dataclass(frozen=True, slots=True)
class _Span:
    """What a schedule covers. ``clock``: requests of the unit-rate process -> seconds since t0.

    ``units``: requests expected in ``duration_s``. ``rate_rps``: None where it changes.
    """

    clock: Clock
    units: float
    duration_s: float
    rate_rps: float | None = None


def _due(workload: Workload, words: Words, span: _Span, seed: int) -> Iterator[_Due]:
    """Everything that may fall within the schedule."""
    recorded = workload.arrivals.process == "trace"
    if recorded and workload.from_trace and not workload.classes:
        yield from _replayed(workload, words, span, seed)
        return
    mix = _Mix(workload, words, seed)
    starts = _recorded_starts(workload, seed) if recorded else _starts(workload.arrivals, seed)
    for number, unit in enumerate(itertools.takewhile(lambda u: u < span.units / mix.mean_turns, starts)):
        name, talk = mix.talk(number)
        first = _Due(span.clock(unit * mix.mean_turns), number, 0, talk, name, mix.in_sessions[name])
        yield from _turns(first, span.duration_s)
    if mix.longest_s == 0:
        return
    before = _recorded_starts_before(workload, seed) if recorded else _starts_before(workload.arrivals, seed)
    for number, unit in enumerate(before, 1):
        t_s = span.clock(-unit * mix.mean_turns)
        if t_s <= -mix.longest_s:
            return
        if (earlier := mix.earlier(number, -t_s)) is not None:
            name, talk = earlier
            yield from _turns(_Due(t_s, -number, 0, talk, name, in_session=True), span.duration_s)


def _turns(first: _Due, duration_s: float) -> Iterator[_Due]:
    """A conversation, as if answers took no time."""
    yield first
    t_s = first.t_s
    for turn, pause_s in enumerate(first.talk.pauses_s[1:], 1):
        t_s += pause_s
        if t_s >= duration_s:
            return
        yield first._replace(t_s=t_s, turn=turn, think_s=pause_s, follows=True)


def _starts(arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Arrival times of the process at rate 1, increasing, without end.

    `constant` starts half a gap in, so that a duration holds rate x duration arrivals, rounded.
    """
    assert arrivals.process != "closed", "a closed loop has no arrival times: use sequence()"
    if arrivals.process == "constant":
        yield from (number + 0.5 for number in itertools.count())
    yield from _cumulated(arrivals, generator(seed, ARRIVALS))


def _starts_before(arrivals: Arrivals, seed: int) -> Iterator[float]:
    """How long before 0 the process at rate 1 had its earlier arrivals, the latest first."""
    if arrivals.process == "constant":
        yield from (number + 0.5 for number in itertools.count())
    yield from _cumulated(arrivals, generator(seed, ARRIVALS, PAST))


def _cumulated(arrivals: Arrivals, rng: Generator) -> Iterator[float]:
    """A gamma of shape k has coefficient of variation k^-1/2: 1 is exponential."""
    reached = 0.0
    while True:
        if arrivals.gap_cv is None:
            gaps = rng.exponential(size=GAPS_PER_DRAW)
        else:
            shape = arrivals.gap_cv**-2
            gaps = rng.gamma(shape, 1 / shape, size=GAPS_PER_DRAW)
        times = reached + np.cumsum(gaps)
        reached = float(times[-1])
        yield from times.tolist()


# -- times of a trace --------------------------------------------------------------------------------------


def _recorded_starts(workload: Workload, seed: int) -> Iterator[float]:
    assert workload.trace is not None
    recorded = replay(workload.trace)
    return (event.at_s * recorded.rate_rps for event in recorded.forward(recorded.offset_s(seed)))


def _recorded_starts_before(workload: Workload, seed: int) -> Iterator[float]:
    assert workload.trace is not None
    recorded = replay(workload.trace)
    return (-event.at_s * recorded.rate_rps for event in recorded.backward(recorded.offset_s(seed)))


def _replayed(workload: Workload, words: Words, span: _Span, seed: int) -> Iterator[_Due]:
    """Conversations with the times of the trace, on the schedule's clock.

    Another rate than the trace's own: the whole clock runs faster or slower; or sessions are left out, where
    that is asked for and the rate is a single one below the trace's own.
    """
    assert workload.trace is not None
    recorded = replay(workload.trace)
    own_rps = recorded.rate_rps
    kept = None
    if workload.trace.fit == "thin" and span.rate_rps is not None and span.rate_rps < own_rps:
        kept = recorded.thinned(span.rate_rps / own_rps)
        span = _Span(lambda units: units / own_rps, span.duration_s * own_rps, span.duration_s)
    talks = Recorded(workload.mix[0], words, seed)
    begun: dict[tuple[int, int], _Due] = {}
    for event in recorded.forward(recorded.offset_s(seed), kept):
        if event.at_s * own_rps >= span.units:
            return
        turns = recorded.sessions[event.number % len(recorded.sessions)]
        before = begun.pop((event.number, event.turn - 1), None)
        talk = before.talk if before else talks.at(event.number)
        due = _Due(span.clock(event.at_s * own_rps), event.number, event.turn, talk, "", talks.in_sessions)
        if before is not None and (took_s := turns[event.turn - 1].took_s) is not None:
            gap_s = turns[event.turn].at_s - turns[event.turn - 1].at_s
            stretch = (due.t_s - before.t_s) / gap_s if gap_s > 0 else 1.0
            due = due._replace(think_s=max(0.0, gap_s - took_s) * stretch, follows=True)
        if event.turn + 1 < len(turns):
            begun[event.number, event.turn] = due
        yield due
