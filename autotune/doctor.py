"""`autotune doctor`: what this machine can run and grants, what is missing and how to get it."""

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.console import JsonOption, emit_json, next_step, out, table

if TYPE_CHECKING:
    from rich.table import Table

    from harness.measurement import Host

GIB = 1 << 30
NVML = "pynvml"
MARKS = {True: "[green]ok[/]", False: "[yellow]no[/]", None: "-"}


def doctor(
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="A running server instead of this machine.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --endpoint: the model to ask. Default: the first listed.")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="With --endpoint: NAME of the variable with its key.")] = None,
    json: JsonOption = False,
) -> None:
    """Say what this machine can run, what it grants to those who measure, and how to get what lacks."""
    from scenarios.errors import UserError

    if endpoint is not None:
        from autotune.endpoint import show

        show(endpoint, model, api_key_env, json=json)
    elif model is not None or api_key_env is not None:
        raise UserError("--model and --api-key-env have a meaning only with --endpoint")
    else:
        _machine(json=json)


def _machine(*, json: bool) -> None:
    from rich.markup import escape

    from harness import plugins
    from harness.grants import grants
    from harness.host import fingerprint
    from harness.models.folders import cache_folder
    from harness.models.store import list_models
    from scenarios.errors import AutotuneError

    host = fingerprint()
    engines = {}
    for name in plugins.names("engines"):
        try:
            engines[name] = {"ok": True, "says": plugins.load("engines", name)().version()}
        except AutotuneError as error:
            engines[name] = {"ok": False, "says": str(error)}
    trackers = {name: _importable(name) for name in plugins.names("trackers")}
    models = [
        {"name": m.name, "variants": [v.variant for v in m.variants if v.state == "ready"]}
        for m in list_models()
        if any(v.state != "on the hub" for v in m.variants)
    ]
    granted = list(grants())
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if json:
        emit_json(
            {
                "host": host.model_dump(mode="json"),
                "engines": engines,
                "trackers": trackers,
                "models": models,
                "model_folder": str(cache_folder()),
                "chromium": chromium,
                "grants": [asdict(grant) for grant in granted],
            }
        )
        return
    out.print(_hardware(host))
    found = table("\nwhat can run", "kind", "name", "", "says")
    for name, engine in engines.items():
        found.add_row("engine", name, "[green]ok[/]" if engine["ok"] else "[red]no[/]", escape(str(engine["says"])))
    for name, ok in trackers.items():
        says = "installed" if ok else f"pip install 'autotune-serving\\[{name}]'"
        found.add_row("tracker", name, "[green]ok[/]" if ok else "[yellow]no[/]", says)
    for model in models:
        built = ", ".join(model["variants"])
        says = built or f"autotune models build {model['name']}"
        found.add_row("model", str(model["name"]), "[green]ok[/]" if built else "[yellow]no[/]", says)
    out.print(found)
    measuring = table("\nmeasuring on it", "what", "found", "", "why it matters")
    for grant in granted:
        measuring.add_row(grant.name, escape(grant.found), MARKS[grant.ok], grant.why)
    out.print(measuring)
    for grant in granted:
        if grant.how:
            out.print(f"{grant.name}: {escape(grant.how)}", soft_wrap=True)
    next_step("autotune tune quickstart")


def _hardware(host: "Host") -> "Table":
    machine = table("machine", "what", "value")
    machine.add_row("CPU", f"{host.cpu}, {host.cores} cores")
    machine.add_row("memory", f"{host.memory_bytes / GIB:.1f} GiB")
    machine.add_row("GPUs", "\n".join(host.gpus) or "none: engines run on the CPU")
    if host.gpus and not _importable(NVML):
        machine.add_row("GPU readings", "none of energy and clocks: pip install 'autotune-serving\\[gpu]'")
    machine.add_row("Python, autotune", f"{host.python}, {host.autotune_version}")
    return machine


def _importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
