"""`autotune models`: what is in the model store, fetch, build."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.console import JsonOption, emit_json, err, next_step, out, table

if TYPE_CHECKING:
    from pathlib import Path

    from harness.progress import Progress

app = typer.Typer(help="Weights and their quantised variants, cached outside the repository.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="A known model: see `autotune models list`.", show_default=False)]
BuildArgument = Annotated[
    str,
    typer.Argument(
        help="A known model (`autotune models list`), the path of a GGUF file, or of a folder in Hugging Face format.",
        show_default=False,
    ),
]
SchemeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        "--variant",
        help="Precision to build; may be repeated. GGUF: f16, q8_0, q4_0, q4_1 (default: all that scenarios use). "
        "Hugging Face format: w8a8-int8, fp8-dynamic, gptq-int4.",
        show_default=False,
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        "--calibration-samples",
        min=1,
        help="Of 512 tokens each, where a scheme is calibrated; default 32.",
        show_default=False,
    ),
]


@app.command("list")
def list_(
    verify: Annotated[bool, typer.Option("--verify", help="Compute every file's digest anew.")] = False,
    json: JsonOption = False,
) -> None:
    """Known models, and which of their variants are on this machine."""
    from harness.models.folders import cache_folder
    from harness.models.store import list_models

    with _progress() as on_progress:
        models = list_models(verify=verify, on_progress=on_progress)
    if json:
        emit_json({"folder": str(cache_folder()), "models": [m.model_dump(mode="json") for m in models]})
        return
    shown = table(f"Models in {cache_folder()}", "model", "variant", "state", "MB", "sha256", "licence")
    colours = {"ready": "green", "missing": "dim", "corrupt": "bold red", "on the hub": "dim"}
    shown.columns[0].no_wrap = True  # names are typed again
    for model in models:
        for v in model.variants:
            size = "" if v.size_bytes is None else f"{v.size_bytes / 1e6:.1f}"
            state = f"[{colours[v.state]}]{v.state}[/]"
            shown.add_row(model.name, v.variant, state, size, (v.sha256 or "")[:12], model.license)
    out.print(shown)
    unready = [(m.name, v.variant) for m in models for v in m.variants if v.state in ("missing", "corrupt")]
    next_step(_building(*unready[0]) if unready else "autotune scenarios list")


def _building(name: str, variant: str) -> str:
    from harness.models.schemes import SCHEMES

    return f"autotune models build {name}{f' --scheme {variant}' if variant in SCHEMES else ''}"


@app.command()
def fetch(name: NameArgument, json: JsonOption = False) -> None:
    """Download a known model, verified, without its dependencies."""
    from harness.models import store

    with _progress() as on_progress:
        path = store.fetch(name, on_progress)
    if json:
        emit_json({"name": name, "path": str(path)})
        return
    out.print(f"{name} is in {path}", soft_wrap=True)
    next_step(f"autotune models build {name}")


@app.command()
def build(
    name: BuildArgument,
    scheme: SchemeOption = None,
    calibration_samples: SamplesOption = None,
    json: JsonOption = False,
) -> None:
    """Make the quantised variants of a model (it is fetched first if need be)."""
    from harness.models import store

    with _progress() as on_progress:
        files = store.build(name, tuple(scheme or ()), on_progress, calibration_samples=calibration_samples)
    if json:
        emit_json({"name": name, "variants": {v: str(path) for v, path in files.items()}})
        return
    shown = table(name, "variant", "MB", "file")
    for built, path in files.items():
        shown.add_row(built, f"{_megabytes(path):.1f}", str(path))
    out.print(shown)
    next_step("autotune models list --verify")


@contextmanager
def _progress() -> "Iterator[Progress]":
    """A live bar on stderr for whatever the store says it is doing."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None, start=True)
        doing = ""

        def on_progress(done: int, total: int, what: str) -> None:
            nonlocal doing
            if what != doing:
                bar.reset(task)
                doing = what
            bar.update(task, description=what, completed=done, total=total)

        yield on_progress


def _megabytes(path: "Path") -> float:
    """Of a file, or of all files of a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6
