"""A scenario of the simulated engine as a world in virtual time: its space, its law, what a launch costs.

Knows nothing of searching or of what is measured. Every number from it is *simulated*.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.engines.base import LaunchPlan
from harness.engines.simulated import hardware
from harness.engines.simulated.law import PROCESS_S, Law, Settings
from harness.errors import ConfigurationImpossible
from scenarios import load
from scenarios.space import Effect, Knob, SearchSpace, ServingConfig, Value
from scenarios.spec import Scenario

NAMES = ("chat", "rag", "code", "agents", "batch")
VALIDATED_S = 1.0  # of a launch whose flags contradict one another: the process ends after reading them

_EFFECTS: dict[str, Effect] = {
    "weights": "precision",
    "kv_cache_dtype": "precision",
    "gpu_memory_utilization": "memory",
    "block_size": "memory",
    "tensor_parallel": "compute",
    "enforce_eager": "compute",
    "speculation": "speculation",
    "speculative_tokens": "speculation",
}
_RECOMPILES = {"weights", "kv_cache_dtype", "tensor_parallel", "max_num_batched_tokens", "speculation", "enforce_eager"}
_KNOBS = [name for name in Settings.__dataclass_fields__ if name != "accelerators"]


@dataclass(frozen=True, slots=True)
class Impossible:
    """Why a configuration cannot be planned, and the seconds until a launch that was tried all the same has died."""

    why: str
    died_after_s: float


@dataclass(frozen=True)
class World:
    """One scenario. Laws are made once per configuration."""

    scenario: Scenario
    _laws: dict[str, Law | Impossible] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.scenario.name.removeprefix("simulated-h100-")

    @cached_property
    def space(self) -> SearchSpace:
        """As narrowed by the scenario."""
        knobs = tuple(_knob(name, self._default(name), self.scenario) for name in _KNOBS)
        return SearchSpace("simulated", knobs).narrowed(self.scenario.search.knobs)

    def _default(self, name: str) -> Value:
        """The engine's own; of tensor_parallel the smallest that fits."""
        if name != "tensor_parallel":
            value: Value = getattr(Settings(), name)
            return value
        most = self.scenario.engine.accelerators or 1
        sizes = [n for n in range(1, most + 1) if most % n == 0]
        fits = (n for n in sizes if isinstance(self._made(ServingConfig("simulated", {name: n})), Law))
        return next(fits, most)

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
        law = self.law(config)
        argv = ("simulated", *(f"--{k}={v}" for k, v in sorted(config.knobs.items())))
        return LaunchPlan(
            config=config,
            argv=argv,
            env={},
            base_url="",
            served_model=self.scenario.model.label,
            health_path="",
            expected_memory_bytes=law.memory.expected_bytes,
            memory_explained=law.memory.explained,
            deploy_argv=argv,
        )

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
        engine = self.scenario.engine
        assert engine.accelerator is not None
        assert self.scenario.model.simulated is not None
        settings = Settings(accelerators=engine.accelerators or 1, **config.knobs)
        device = hardware.accelerator(engine.accelerator)
        shape = hardware.model(self.scenario.model.simulated)
        try:
            return Law(settings, device, shape, self.scenario.model.context_tokens)
        except ConfigurationImpossible as err:
            why = str(err)
            died_s = VALIDATED_S
            if why.startswith("not enough memory"):  # found out by loading the weights
                died_s = PROCESS_S + 2 * shape.parameters / settings.tensor_parallel / device.load_bytes_per_s
            return Impossible(why, died_s)


def world(name: str) -> World:
    """A scenario of the catalogue, or a file."""
    return World(load.load(name if Path(name).exists() else f"simulated-h100-{name}"))


def _knob(name: str, default: Value, scenario: Scenario) -> Knob:
    asked = scenario.search.knobs.get(name, ())
    return Knob(
        name,
        tuple(dict.fromkeys((*asked, default))),
        default,
        _EFFECTS.get(name, "batching"),
        "",
        when=("speculation", ("ngram", "draft")) if name == "speculative_tokens" else None,
        recompiles=name in _RECOMPILES,
    )
