"""What a tuner must be able to do, and the trial that it learns from.

Knows nothing of engines, load or how a trial is run.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import field_validator

from harness.measurement import Record
from scenarios.space import SearchSpace, ServingConfig

State = Literal["complete", "infeasible", "quality"]
# complete: measured. infeasible: the engine did not start, ran out of memory, crashed or hung.
# quality: fast or not, its answers are worse than the margin allows. VOID runs never become trials.


class Trial(Record):
    """One configuration, tried. ``score``: to be maximised; None where nothing could be measured.

    ``constraints``: name -> graded violation, feasible when every one is <= 0.
    """

    number: int  # 0 is the control: the engine's defaults
    knobs: dict[str, Any]
    config_digest: str
    state: State
    score: float | None
    constraints: dict[str, float]
    seconds: float  # wall-clock: launch, quality screen and load; of the attempt that counted, not of void ones
    launch_s: float | None = None  # the part of it until the engine answered; None: it never did
    failure: str | None = None  # failure class
    why: str = ""  # one sentence for people: what became of it

    @field_validator("constraints")
    @classmethod
    def _graded(cls, constraints: dict[str, float]) -> dict[str, float]:
        """A violation that is no number is a broken promise, nobody knows by how much."""
        return {name: 1.0 if math.isnan(v) else v for name, v in constraints.items()}

    @property
    def feasible(self) -> bool:
        return self.state == "complete" and all(v <= 0 for v in self.constraints.values())


def infeasible(number: int, config: ServingConfig, failure: str, why: str) -> Trial:
    """A configuration that did not run, as the tuner is told of it."""
    return Trial(
        number=number,
        knobs=dict(config.knobs),
        config_digest=config.digest,
        state="infeasible",
        score=None,
        constraints={"engine": 1.0},
        seconds=0.0,
        failure=failure,
        why=why,
    )


Possible = Callable[[ServingConfig], bool]


def everything(config: ServingConfig) -> bool:  # noqa: ARG001 - the shape of Possible
    """No configuration is known to be impossible."""
    return True


class Tuner(Protocol):
    """Proposes configurations from the history alone: same history, same seed, same proposal.

    There is no hidden state to lose: a resumed study passes the history it has read.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None: ...

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        """The next configuration to try; None when the space is exhausted. Never one already in history.

        Never one that is not ``possible``: what a plan, made without launching anything, already rules out.
        """


@runtime_checkable
class Expecting(Protocol):
    """A tuner that has a model. What it expects may order or hint, and rules nothing out."""

    def expects(self, history: Sequence[Trial], config: ServingConfig) -> float | None:
        """The score that ``config`` should have; None while too little is known."""
