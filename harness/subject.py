"""What is measured, all resolved: a scenario with its engine, its model and this machine. Launches nothing.

Knows nothing of load: `harness.bench` measures it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness import plugins
from harness.engines.base import Engine, HostLimits, LaunchPlan, ResolvedModel, check_loads
from harness.host import limits
from harness.load.fleet import ALONE, Fleet, is_loopback
from harness.load.records import LiveCounters
from harness.measurement import EngineIdentity
from harness.models.store import resolve
from harness.observe import Target, latency_name
from scenarios.errors import UserError
from scenarios.space import Knob, SearchSpace, ServingConfig, Value
from scenarios.spec import Scenario
from scenarios.workload import Words


class Observer(Protocol):
    """Is told what happens, for people who watch. Never changes what happens."""

    def begin(self, what: str, seconds: float | None) -> None: ...

    def live(self, counters: LiveCounters) -> None: ...

    def note(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, all resolved: the same for every configuration of a study."""

    scenario: Scenario
    engine: Engine
    engine_version: str
    model: ResolvedModel
    host: HostLimits
    root: Path  # the run folder: record paths are relative to it
    observer: Observer
    targets: tuple[Target, ...] = ()
    words: Words | None = None
    counted: dict[str, int] = field(default_factory=dict)  # tokens of real texts, asked of the server once each
    fleet: Fleet = ALONE  # who generates the load

    def space(self) -> SearchSpace:
        """All that the engine offers here, before the scenario narrows it."""
        return offered(self.engine, self.scenario, self.model, self.host)

    def plan(self, config: ServingConfig) -> LaunchPlan:
        return self.engine.plan(self.scenario.engine, self.model, config, self.host)

    def identity(self, plan: LaunchPlan) -> EngineIdentity:
        return EngineIdentity(
            engine=self.engine.name,
            version=self.engine_version,
            argv=plan.argv or (),
            env=dict(plan.env),
            model=self.model.label,
            model_digest=self.model.digests.get(str(plan.config.knobs.get("variant", ""))),
            config_digest=plan.config.digest,
            simulated=plan.simulated,
            dummy_weights=self.scenario.model.weights == "dummy",
        )


def engine_of(scenario: Scenario) -> Engine:
    """Raises UserError for an engine that is not there, or that cannot load what the scenario asks for."""
    engine: Engine = plugins.load("engines", scenario.engine.name)()
    check_loads(engine, scenario.model)
    return engine


def version_of(engine: Engine, scenario: Scenario) -> str:
    """An engine that has no environment or address of its own need not take the argument."""
    own = scenario.engine.python or scenario.engine.base_url
    return engine.version(scenario.engine) if own else engine.version()


def offered(engine: Engine, scenario: Scenario, model: ResolvedModel, host: HostLimits) -> SearchSpace:
    """All that the engine offers here, but for what would empty a promise of its meaning."""
    promised = {latency_name(metric) for metric in scenario.targets}

    def spoils(knob: Knob, _: Value) -> str | None:
        spoilt = promised.intersection(knob.spoils)
        return f"a target of {' and '.join(sorted(spoilt))} would mean little with it" if spoilt else None

    return engine.knobs(scenario.engine, model, host).without(spoils)


def prepare(scenario: Scenario, root: Path, observer: Observer, *, build: bool, fleet: Fleet = ALONE) -> Subject:
    """Finds the engine, the model and the host's limits. ``build``: missing variants are fetched and built.

    Raises EngineNotInstalled, ModelNotFound, ModelCorrupt, DownloadFailed, UserError.
    """
    if fleet.remote and (scenario.engine.base_url is None or is_loopback(scenario.engine.base_url)):
        reached = scenario.engine.base_url or f"an engine started here ({scenario.engine.name})"
        raise UserError(
            f"workers on other machines cannot reach {reached}: they need engine.name: attached and an "
            "engine.base_url that means the same machine everywhere"
        )
    engine = engine_of(scenario)
    version = version_of(engine, scenario)
    if scenario.model.simulated is not None:
        observer.note("simulated: the engine follows a stated law, and no accelerator is measured")
    if scenario.model.weights == "dummy":
        observer.note("dummy weights: the speed is real, every answer is noise")
    model = resolve(scenario.model, build=build, on_progress=lambda _done, _total, what: observer.begin(what, None))
    return Subject(scenario, engine, version, model, limits(), root, observer, fleet=fleet)
