"""What a search did, launch by launch, and the regret that follows from it: arithmetic only.

Regret is 1 - truth(the configuration the arm would pick by then) / truth(optimum). Time begins after the defaults
were measured: every arm has them first. Knows nothing of how anything was searched or measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tuners.base import Trial

SHORT = 10  # digits of a digest, as `ServingConfig.short`
WASTED = frozenset({"start_failed", "out_of_memory", "crashed"})


@dataclass(frozen=True, slots=True)
class Launch:
    """``score`` None: it did not run, or met its targets at no rate. ``ended_s``: on the arm's clock."""

    digest: str
    ended_s: float
    score: float | None
    wasted: bool  # it crashed, ran out of memory, or could have been known beforehand not to start
    pick: str | None = None  # what the arm would deploy after it (digest); None: its best score so far


@dataclass(frozen=True, slots=True)
class Step:
    """From here on the arm would pick a configuration with this regret."""

    launches: int
    seconds: float
    regret: float
    pick: str = ""  # its short digest


@dataclass(frozen=True, slots=True)
class Course:
    """One arm on one seed. ``steps``: the first is the defaults, at 0 launches and 0 s."""

    steps: tuple[Step, ...]
    launches: int
    seconds: float
    wasted: int
    claim: str = ""  # "tuned" or "keep_defaults", where the arm has finals …
    final_regret: float | None = None  # … and of what it then deploys

    def regret_at(self, seconds: float) -> float:
        return [s.regret for s in self.steps if s.seconds <= seconds][-1]

    def regret_after(self, launches: int) -> float:
        return [s.regret for s in self.steps if s.launches <= launches][-1]

    def mean_regret(self, until_s: float) -> float:
        """Over time, from the defaults on."""
        ends = [*(min(s.seconds, until_s) for s in self.steps[1:]), until_s]
        return (
            sum(s.regret * (end - min(s.seconds, until_s)) for s, end in zip(self.steps, ends, strict=True)) / until_s
        )

    def first_within(self, regret: float) -> float | None:
        """Seconds; None: never."""
        return next((s.seconds for s in self.steps if s.regret <= regret), None)


def launched(trial: Trial, before_s: float) -> Launch:
    """A study's trial. ``before_s``: seconds of those before it."""
    score = trial.score if trial.feasible and trial.score else None
    return Launch(trial.config_digest[:SHORT], before_s + trial.seconds, score, trial.failure in WASTED)


@dataclass(frozen=True, slots=True)
class Search:
    """``launches``: the defaults first. ``claim``, ``deployed`` (digest): where the arm has finals."""

    launches: tuple[Launch, ...]
    claim: str = ""
    deployed: str | None = None


def course(search: Search, truths: Mapping[str, float], until_s: float) -> Course:
    """Launches that end after ``until_s`` do not count.

    ``truths``: digest -> true capacity; what is not in it never runs.
    The arm picks the best score so far, unless a launch says what it picks.
    """
    launches = search.launches
    optimum = max(truths.values())
    best, pick = launches[0].score or 0.0, launches[0].digest
    steps = [Step(0, 0.0, round(1 - truths.get(pick, 0.0) / optimum, 4), pick)]
    counted = [launch for launch in launches[1:] if launch.ended_s <= until_s]
    for n, launch in enumerate(counted, 1):
        before = pick
        if launch.score is not None and launch.score > best:
            best, pick = launch.score, launch.digest
        if launch.pick is not None:
            pick = launch.pick
        if pick != before:
            steps.append(Step(n, round(launch.ended_s, 1), round(1 - truths.get(pick, 0.0) / optimum, 4), pick))
    seconds = counted[-1].ended_s if counted else 0.0
    return Course(
        steps=tuple(steps),
        launches=len(counted),
        seconds=round(seconds, 1),
        wasted=sum(launch.wasted for launch in counted),
        claim=search.claim,
        final_regret=round(1 - truths.get(search.deployed, 0.0) / optimum, 4) if search.deployed else None,
    )
