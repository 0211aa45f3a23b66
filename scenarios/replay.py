"""The part of a trace that is replayed: its window, scaled in time and length, thinned by whole sessions.

Read round and round: after the window's end it begins again, as another lap. Knows nothing of texts or of the
rates that are asked for.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import Problem, TraceError
from scenarios.traces import Trace, TraceTurn, read
from scenarios.traffic import TraceFile

MOST_RPS = 100_000

BoolArray = NDArray[np.bool_]


class Event(NamedTuple):
    """A request of the replay. ``number``: lap x sessions + session. ``turn``: which of those in the window."""

    at_s: float
    number: int
    turn: int


@dataclass(frozen=True)
class Replay:
    """``sessions``: the turns inside the window, ``at_s`` since its beginning, lengths scaled. ``seconds``: a lap."""

    spec: TraceFile
    sessions: tuple[tuple[TraceTurn, ...], ...] = field(repr=False)
    seconds: float
    trace: Trace = field(repr=False)

    @cached_property
    def requests(self) -> int:
        return sum(len(turns) for turns in self.sessions)

    @property
    def rate_rps(self) -> float:
        """The trace's own rate. Without times: one request a second."""
        return self.requests / self.seconds

    @property
    def mean_turns(self) -> float:
        return self.requests / len(self.sessions)

    @property
    def shortened(self) -> int:
        """Requests with a prompt or an answer longer than the spec allows."""
        most_in, most_out = self.spec.max_prompt_tokens, self.spec.max_output_tokens
        return sum(
            (most_in is not None and t.prompt_tokens > most_in) or (most_out is not None and t.output_tokens > most_out)
            for turns in self.sessions
            for t in turns
        )

    @cached_property
    def _events(self) -> tuple[Event, ...]:
        """Of one lap, in order of time."""
        return tuple(
            sorted(Event(t.at_s, number, k) for number, turns in enumerate(self.sessions) for k, t in enumerate(turns))
        )

    @cached_property
    def _thinning_order(self) -> NDArray[np.int64]:
        """The same for every share, so that what a smaller one keeps, a larger one keeps too."""
        return np.random.default_rng([self.spec.seed, 1]).permutation(len(self.sessions))

    def thinned(self, share: float) -> BoolArray:
        """Whether each session is kept: whole ones, with as few requests as make at least ``share`` of all."""
        sizes = np.array([len(self.sessions[i]) for i in self._thinning_order])
        before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        kept = np.empty(len(sizes), dtype=bool)
        kept[self._thinning_order] = before < share * self.requests
        return kept

    def offset_s(self, seed: int) -> float:
        """Where in the window a schedule of that seed begins."""
        if self.spec.begin == "start":
            return 0.0
        return float(np.random.default_rng([seed, 2]).random() * self.seconds)

    def forward(self, offset_s: float, kept: BoolArray | None = None) -> Iterator[Event]:
        """Without end, in order of time from ``offset_s`` into the first lap; times since then, >= 0."""
        for lap in itertools.count():
            for event in self._lap(lap, offset_s, kept):
                if event.at_s >= 0:
                    yield event

    def backward(self, offset_s: float, kept: BoolArray | None = None) -> Iterator[Event]:
        """What came before ``offset_s``, the latest first, without end; times < 0."""
        for lap in itertools.count():
            for event in reversed(list(self._lap(-lap, offset_s, kept))):
                if event.at_s < 0:
                    yield event

    def _lap(self, lap: int, offset_s: float, kept: BoolArray | None) -> Iterator[Event]:
        shift_s, first = lap * self.seconds - offset_s, lap * len(self.sessions)
        for at_s, session, turn in self._events:
            if kept is None or kept[session]:
                yield Event(at_s + shift_s, first + session, turn)


@lru_cache(maxsize=8)
def replay(spec: TraceFile) -> Replay:
    """The part of the file that ``spec`` asks for. Raises TraceError."""
    trace = read(spec.file, spec.format, spec.malformed, spec.sha256)
    if spec.format == "sharegpt":
        whole = Replay(spec, trace.sessions, float(trace.requests), trace)
    else:
        whole = _window(spec, trace)
    if spec.keep == 1:
        return whole
    kept = whole.thinned(spec.keep)
    sessions = tuple(turns for turns, keep in zip(whole.sessions, kept, strict=True) if keep)
    seconds = whole.seconds
    if spec.format == "sharegpt":
        seconds = float(sum(len(turns) for turns in sessions))
    return Replay(spec, sessions, seconds, trace)


def _window(spec: TraceFile, trace: Trace) -> Replay:
    """Requests due in the window; a session that is cut by it keeps the turns inside."""
    end_s = None if spec.seconds is None else spec.start_s + spec.seconds
    inside = (
        tuple(t for t in turns if t.at_s >= spec.start_s and (end_s is None or t.at_s < end_s))
        for turns in trace.sessions
    )
    sessions = sorted((turns for turns in inside if turns), key=lambda turns: turns[0].at_s)
    n = sum(len(turns) for turns in sessions)
    if n == 0:
        raise TraceError([Problem(spec.file, None, "", _empty(spec, trace))])
    seconds = spec.seconds
    if seconds is None:
        span_s = max(turns[-1].at_s for turns in sessions) - spec.start_s
        seconds = span_s * n / (n - 1) if n > 1 and span_s > 0 else float(n)  # the last gap is as long as the others
    if n / (seconds * spec.time_scale) > MOST_RPS:
        message = f"has {n:,} requests in {seconds * spec.time_scale:g} s: more than {MOST_RPS:,} requests/s"
        raise TraceError([Problem(spec.file, None, "", message)])
    scaled = tuple(tuple(_scaled(t, spec) for t in turns) for turns in sessions)
    return Replay(spec, scaled, seconds * spec.time_scale, trace)


def _empty(spec: TraceFile, trace: Trace) -> str:
    last_s = max(turns[-1].at_s for turns in trace.sessions)
    return f"has no request in the window from {spec.start_s:g} s: its last is at {last_s:g} s"


def _scaled(turn: TraceTurn, spec: TraceFile) -> TraceTurn:
    return TraceTurn(
        at_s=(turn.at_s - spec.start_s) * spec.time_scale,
        prompt_tokens=max(1, round(turn.prompt_tokens * spec.length_scale)),
        output_tokens=max(1, round(turn.output_tokens * spec.length_scale)),
        took_s=None if turn.took_s is None else turn.took_s * spec.time_scale,
        blocks=turn.blocks,
        texts=turn.texts,
    )
