"""Ours without one of its ingredients at a time.

Knows nothing of results.
"""

from collections.abc import Sequence

from scenarios.space import ServingConfig
from search.arms import GP_MODULES, OURS, Arm, StudyArm
from search.laboratory import Rules
from tuners.base import Possible, Trial, everything
from tuners.gp_tuner import GpTuner


class WithoutCover(GpTuner):
    """Begins at random, whatever values that leaves unseen."""

    def _unseen(self, history: Sequence[Trial]) -> list[tuple[int, int]]:  # noqa: ARG002 - the shape of what it replaces
        return []


class WithoutSeconds(GpTuner):
    """Improvement, not improvement per second."""

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        return super().ask([t.model_copy(update={"seconds": 0.0}) for t in history], possible)


class WithoutFailures(GpTuner):
    """What died is not tried again, and teaches nothing."""

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        died = {t.config_digest for t in history if t.score is None}
        return super().ask([t for t in history if t.score is not None], lambda c: c.digest not in died and possible(c))


_MODULES = (*GP_MODULES, "search.ablations")
_ABLATIONS = (
    Arm("no racing", StudyArm(OURS, Rules(racing=False)), "every configuration gets all its holds", GP_MODULES),
    Arm("no planner", StudyArm(OURS, Rules(planner=False)), "what cannot be planned is launched, and dies", GP_MODULES),
    Arm("no guess", StudyArm(OURS, Rules(guess=False)), "ramps begin near the default's capacity", GP_MODULES),
    Arm("no cover", StudyArm(WithoutCover), "begins with random configurations", _MODULES),
    Arm("no seconds", StudyArm(WithoutSeconds), "expected improvement, whatever it costs", _MODULES),
    Arm("no failures", StudyArm(WithoutFailures), "crashes and missed memory teach nothing", _MODULES),
)
ABLATIONS = {arm.name: arm for arm in _ABLATIONS}
