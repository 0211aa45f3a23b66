"""A scenario of the simulated engine as a world in virtual time: its space, its law, what a launch costs.

Knows nothing of searching or of what is measured. Every number from it is *simulated*.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from harness.engines.base import HostLimits, LaunchPlan, ResolvedModel
from harness.engines.simulated import adapter, core, hardware, paged, steps, virtual
from harness.engines.simulated import law as law_of_steps
from harness.engines.simulated.adapter import Simulated
from harness.engines.simulated.law import PROCESS_S, Law
from harness.errors import ConfigurationImpossible
from scenarios import load
from scenarios.space import SearchSpace, ServingConfig, Value
from scenarios.space import digest as content_digest
from scenarios.spec import Scenario

# Seconds of warm-up, ramp and one hold, and most holds: as one measures on a GPU. The catalogue's are made for a study
# that a person waits for, and tell capacities that are wrong by a third.
BUDGETS = {
    "chat": (8, 60, 40, 4),
    "rag": (10, 90, 60, 4),
    "code": (10, 180, 120, 4),
    "agents": (8, 60, 40, 4),
    "batch": (15, 240, 120, 4),
}
HOURS = {"chat": 2.0, "rag": 2.5, "code": 3.5, "agents": 1.75, "batch": 5.0}  # of wall-clock that a search gets

NAMES = ("chat", "rag", "code", "agents", "batch")
VALIDATED_S = 1.0  # of a launch whose flags contradict one another: the process ends after reading them


@dataclass(frozen=True, slots=True)
class Impossible:
    """Why a configuration cannot be planned, and the seconds until a launch that was tried all the same has died."""

    why: str
    died_after_s: float


@dataclass(frozen=True)
class World:
    """One scenario. Laws are made once per configuration."""

    scenario: Scenario
    default: Mapping[str, Value] = field(default_factory=dict)  # instead of the engine's own, where given
    _laws: dict[str, Law | Impossible] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.scenario.name.removeprefix("simulated-h100-")

    @cached_property
    def space(self) -> SearchSpace:
        """As the engine declares it, narrowed by the scenario."""
        scenario = self.scenario
        whole = Simulated().knobs(scenario.engine, self.model, HostLimits(1, 1))
        knobs = tuple(replace(k, default=self.default.get(k.name, k.default)) for k in whole.knobs)
        return replace(whole, knobs=knobs).narrowed(scenario.search.knobs)

    @cached_property
    def model(self) -> ResolvedModel:
        return ResolvedModel(self.scenario.model, self.scenario.model.label, reference_variant="")

    @cached_property
    def digest(self) -> str:
        """Of all that decides over a truth: the scenario's traffic, targets and space, and the sources of the law."""
        asked = self.scenario.model_dump(mode="json", exclude_none=True)  # a key that the format gains changes no truth
        sources = (law_of_steps, core, steps, paged, virtual)
        parts = [
            {key: asked[key] for key in ("model", "engine", "workload", "slo")},
            asked["search"]["knobs"],
            *(Path(str(module.__file__)).read_text(encoding="utf-8") for module in sources),
            files("harness.engines.simulated").joinpath("hardware.toml").read_text(encoding="utf-8"),
        ]
        return content_digest(parts)[:16]

    @cached_property
    def targets_s(self) -> dict[str, tuple[float, float]]:
        """Metric -> (target in seconds, percentile)."""
        found = {}
        for metric, target in self.scenario.targets.items():
            assert target.target_ms is not None, "relative targets have no truth"
            found[metric] = (target.target_ms / 1e3, target.percentile)
        return found

    def law(self, config: ServingConfig) -> Law:
        """Raises ConfigurationImpossible, as the planner does."""
        found = self._look(config)
        if isinstance(found, Impossible):
            raise ConfigurationImpossible(found.why)
        return found

    def impossible(self, config: ServingConfig) -> Impossible | None:
        found = self._look(config)
        return found if isinstance(found, Impossible) else None

    def plan(self, config: ServingConfig) -> LaunchPlan:
        """Raises ConfigurationImpossible."""
        self.law(config)
        return Simulated().plan(self.scenario.engine, self.model, config, HostLimits(1, 1))

    def configurations(self) -> Iterator[ServingConfig]:
        """Those that start, in the order of the space; and the defaults, first."""
        default = self.space.default()
        yield default
        for config in self.space.enumerate():
            law = self._look(config)
            if isinstance(law, Law) and law.memory.starts and config.digest != default.digest:
                yield config

    def _look(self, config: ServingConfig) -> Law | Impossible:
        digest = config.digest
        if digest not in self._laws:
            self._laws[digest] = self._made(config)
        return self._laws[digest]

    def _made(self, config: ServingConfig) -> Law | Impossible:
        try:
            return adapter.law(self.scenario.engine, self.model, config)
        except ConfigurationImpossible as err:
            why = str(err)
        died_s = VALIDATED_S
        if why.startswith("not enough memory"):  # found out by loading the weights
            device = hardware.accelerator(str(self.scenario.engine.accelerator))
            shape = hardware.model(str(self.scenario.model.simulated))
            share = 2 * shape.parameters / int(config.knobs["tensor_parallel"])
            died_s = PROCESS_S + min(share, device.memory_bytes) / device.load_bytes_per_s
        return Impossible(why, died_s)


def world(name: str) -> World:
    """A scenario of the catalogue, with the budget of this benchmark."""
    scenario = load.load(f"simulated-h100-{name}")
    budget = dict(zip(("warmup_s", "ramp_s", "hold_s", "holds"), BUDGETS[name], strict=True))
    return World(scenario.model_copy(update={"budget": scenario.budget.model_copy(update=budget)}))
