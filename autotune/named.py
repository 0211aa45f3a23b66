"""What a scenario names and only the installed plug-ins know: engine, tuner, accelerator, knobs.

Knobs are checked where their values follow from the scenario alone, as those of the simulated engine do. All others
depend on weights and on the machine: `autotune tune --dry-run` plans them.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from scenarios.located import Path
from scenarios.refusals import nearest, not_among
from scenarios.space import spelling

if TYPE_CHECKING:
    from scenarios.space import SearchSpace, Value
    from scenarios.spec import Scenario

Finding = tuple[Path, str]


def unknown(scenario: "Scenario") -> list[Finding]:
    """Where the scenario names what is not there, and what is. For `scenarios.load.load`."""
    from harness import plugins

    named: list[tuple[Path, str, tuple[str, ...]]] = [
        (("engine", "name"), scenario.engine.name, tuple(plugins.names("engines"))),
        (("search", "tuner"), scenario.search.tuner, tuple(plugins.names("tuners"))),
    ]
    simulated = scenario.model.simulated
    if simulated is not None:
        from harness.engines.simulated import hardware

        assert scenario.engine.accelerator is not None
        named.append((("model", "simulated"), simulated, hardware.models()))
        named.append((("engine", "accelerator"), scenario.engine.accelerator, hardware.accelerators()))
    found = [(at, not_among(name, there)) for at, name, there in named if name not in there]
    if simulated is not None and not found:
        found += _unknown_knobs(_space(scenario), scenario.search.knobs)
    return found


def _space(scenario: "Scenario") -> "SearchSpace":
    from harness.engines.simulated.adapter import Simulated
    from harness.host import limits
    from harness.models.store import resolve

    return Simulated().knobs(scenario.engine, resolve(scenario.model, build=False), limits())


def _unknown_knobs(space: "SearchSpace", asked: "Mapping[str, tuple[Value, ...]]") -> Iterator[Finding]:
    """What another release knows is no error: the study leaves it out, and says so."""
    allowed = {knob.name: [spelling(choice) for choice in knob.choices] for knob in space.knobs}
    elsewhere = {(name, spelling(value)) for name, value, _ in space.absent}
    for name, values in asked.items():
        if name not in allowed and name not in {other for other, _ in elsewhere}:
            hint = nearest(name, list(allowed)) or f"; there are {', '.join(allowed)}"
            yield ("search", "knobs", name), f"unknown knob of {space.engine}{hint}"
            continue
        for place, value in enumerate(values):
            if spelling(value) not in allowed.get(name, ()) and (name, spelling(value)) not in elsewhere:
                yield ("search", "knobs", name, place), not_among(value, allowed.get(name, ()))
