"""From a finished run folder to a `Deployment`: the winner and its launch plan.

Knows no format.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lifecycle.export.base import Canonical, Deployment, refuse_what_no_format_may_carry
from scenarios.errors import UserError
from tuners.answer import DEPLOY_PORT
from tuners.results import Winner

IMAGES = {
    "llamacpp": "ghcr.io/ggml-org/llama.cpp:server",
    "vllm": "vllm/vllm-openai",
    "vllm-cpu": "vllm/vllm-openai-cpu",
    "sglang": "lmsysorg/sglang",
    "tgi": "ghcr.io/huggingface/text-generation-inference",
}
TAGS = {"vllm": "v", "vllm-cpu": "v", "sglang": "v", "tgi": ""}  # what images put before their version
MODEL_FLAGS = ("--model", "--model-path", "--model-id")
ON_GPUS = ("vllm", "sglang", "tgi")
LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Placement:
    """What a study cannot know: where its answer is to run. None: the usual."""

    name: str | None = None
    port: int = DEPLOY_PORT
    image: str | None = None
    program: str | None = None


def deployment(run: Path, placement: Placement) -> Deployment:
    """Raises UserError for a run without an answer that could be deployed."""
    winner = read_winner(run / "winner.json")
    if winner.config is None or winner.identity is None:
        raise UserError(f"{run}: no configuration met the targets, so there is nothing to export")
    if winner.identity.simulated:
        raise UserError(f"{run}: its engine is simulated: there is nothing to deploy")
    if winner.identity.dummy_weights:
        raise UserError(
            f"{run}: its weights were dummies, whose answers are noise; study the real ones, with quality tasks: leave "
            f"out model.weights, and `--from {run}` tries what was found here first"
        )
    plan = _plan(run, winner)
    engine = winner.identity.engine
    argv = plan.get("deploy_argv") or _exported_argv(winner)
    if not argv:
        raise UserError(f"{run}: {engine} has no command line of its own to export")
    canonical = Canonical.of(argv, plan.get("env", winner.export.get("environment", {})), winner.identity.config_digest)
    refuse_what_no_format_may_carry(canonical)
    knobs: Mapping[str, Any] = winner.config["knobs"]
    return Deployment(
        canonical=canonical,
        engine=engine,
        name=_name(placement.name or run.resolve().name),
        served_model=winner.identity.model,
        model=next(filter(None, map(canonical.flag, MODEL_FLAGS)), canonical.program[-1]),
        health_path=str(plan.get("health_path", "/health")),
        port=placement.port,
        image=placement.image or _image(engine, winner.identity.version),
        program=placement.program or canonical.program[0],
        gpus=int(knobs.get("tensor_parallel", 1)) * int(knobs.get("data_parallel", 1)) if engine in ON_GPUS else 0,
        memory_bytes=plan.get("expected_memory_bytes"),
        winner=winner,
    )


def read_winner(path: Path) -> Winner:
    try:
        return Winner.model_validate_json(path.read_bytes())
    except FileNotFoundError as err:
        raise UserError(f"{path} does not exist: the study is not finished, or this is not a run folder") from err
    except ValidationError as err:
        raise UserError(f"{path} was written by another version of autotune: {err}") from err


def _plan(run: Path, winner: Winner) -> dict[str, Any]:
    """The launch plan of the winning trial; empty where only winner.json was kept."""
    path = run / "trials" / f"{winner.trial or 0:03d}" / "plan.json"
    if not path.exists():
        return {}
    plan: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return plan


def _exported_argv(winner: Winner) -> list[str]:
    lines = [text for name, text in winner.export.items() if name != "environment"]
    return shlex.split(lines[0]) if lines else []


def _image(engine: str, version: str) -> str:
    """The engine's published image, of the version that was measured where that can be told."""
    name = IMAGES.get(engine, engine)
    if engine in TAGS and (found := re.search(r"\d+\.\d+\.\d+(\.post\d+)?", version)):
        return f"{name}:{TAGS[engine]}{found[0]}"
    return name


def _name(text: str) -> str:
    """RFC 1123: what Kubernetes and Compose accept."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:LONGEST_NAME].strip("-")
    if not cleaned:
        raise UserError(f"--name must have a letter or digit, got {text!r}")
    return cleaned if cleaned[0].isalpha() else f"m-{cleaned}"
