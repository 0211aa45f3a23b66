"""What a person sees while a study or a bench runs.

In a terminal: what runs, the load so far, the best so far and the time left, on two moving lines. Elsewhere
(a pipe, CI): one plain line for every thing that happened. Quiet: nothing.
"""

import time
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from harness.load.records import LiveCounters
from tuners.results import TrialResult


class Watch:
    """A `tuners.study.StudyObserver` for people."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._started = time.monotonic()
        self._what = ""
        self._what_started = self._started
        self._what_seconds: float | None = None
        self._counters: LiveCounters | None = None
        self._done, self._total = 0, 0
        self._trials_started: float | None = None
        self._best = ""
        self._live = Live(get_renderable=self.lines, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def begin(self, what: str, seconds: float | None) -> None:
        self._what, self._what_started, self._what_seconds = what, time.monotonic(), seconds
        self._counters = None

    def live(self, counters: LiveCounters) -> None:
        self._counters = counters

    def note(self, line: str) -> None:
        if not self._quiet:
            self._console.print(f"[dim]{_clock(time.monotonic() - self._started)}[/]  ", end="")
            self._console.print(line, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)

    def progress(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if done == 1:
            self._trials_started = time.monotonic()

    def trial(self, result: TrialResult) -> None:
        trial = result.trial
        mark = "ok" if trial.feasible else trial.state if trial.state != "complete" else "misses"
        self.note(f"  {mark}: {trial.why} ({trial.seconds:.0f} s)")
        if trial.feasible and trial.score is not None:
            best = f"{trial.score:.2f}"
            if not self._best or trial.score > float(self._best.split()[0]):
                self._best = f"{best} (trial {trial.number:03d})"

    def lines(self) -> RenderableType:
        now = time.monotonic()
        line = Text(f"  {self._what}", style="bold", overflow="ellipsis", no_wrap=True)
        if self._what_seconds:
            line.append(f"  {now - self._what_started:.0f}/{self._what_seconds:.0f} s", style="dim")
        if self._counters is not None:
            c = self._counters
            misses = " ".join(f"{metric} {n}" for metric, n in c.misses.items() if n)
            line.append(f"  {c.done} answered, {c.in_flight} in flight", style="dim")
            if misses:
                line.append(f", missed {misses}", style="yellow")
        parts = [_clock(now - self._started)]
        if self._total:
            parts.append(f"configuration {min(self._done + 1, self._total)} of {self._total}")
        if self._best:
            parts.append(f"best {self._best}")
        if self._trials_started is not None and self._done > 1:
            each = (now - self._trials_started) / self._done
            parts.append(f"about {_clock(each * max(0, self._total - self._done))} of search left")
        return Group(line, Text("  " + "  ·  ".join(parts), style="dim", overflow="ellipsis", no_wrap=True))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:d}:{rest:02d}"
