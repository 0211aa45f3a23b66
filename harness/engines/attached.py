"""An OpenAI-compatible server that is already running: measured, never started, stopped or configured.

Knows only its address; the key comes from the environment variable that the scenario names.
"""

import os
import re

import httpx

from harness.engines import asking
from harness.engines.base import Endpoint, HostLimits, LaunchPlan, ResolvedModel
from harness.errors import ConfigurationImpossible, FailureClass
from scenarios.errors import UserError
from scenarios.space import SearchSpace, ServingConfig
from scenarios.spec import EngineSpec


class Attached:
    name = "attached"

    def version(self, spec: EngineSpec | None = None) -> str:  # noqa: ARG002 - the contract's shape
        return "attached (unknown)"

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:  # noqa: ARG002 - the contract's shape
        return SearchSpace(self.name, ())

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:  # noqa: ARG002
        if config.knobs:
            raise ConfigurationImpossible("an attached endpoint has no knobs: it runs as somebody else started it")
        if spec.api_key_env is not None and not os.environ.get(spec.api_key_env):
            raise UserError(f"engine.api_key_env: environment variable {spec.api_key_env} is not set")
        assert spec.base_url is not None
        return LaunchPlan(
            config=config,
            argv=None,
            env={},
            base_url=spec.base_url.rstrip("/"),
            served_model=model.label,
            health_path="/health",
            expected_memory_bytes=None,
            memory_explained="not observable: the server was not started by us",
        )

    def classify(self, log: str, exit_code: int | None) -> FailureClass | None:  # noqa: ARG002 - the contract's shape
        return None

    def tokenize(self, endpoint: Endpoint, text: str) -> list[int] | None:
        """By llama.cpp's or vLLM's route, whichever answers."""
        for body in ({"content": text}, {"model": endpoint.served_model, "prompt": text, "add_special_tokens": False}):
            try:
                answer = httpx.post(f"{endpoint.root_url}/tokenize", json=body, timeout=10, trust_env=False)
                tokens = answer.json().get("tokens") if answer.status_code == httpx.codes.OK else None
            except (httpx.HTTPError, ValueError):
                return None
            if isinstance(tokens, list):
                return tokens
        return None

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        """Every sample without labels, or with vLLM's one label set, by its own name."""
        samples = re.finditer(
            r"^([a-zA-Z_:]+)(?:\{[^}]*\})? ([0-9.eE+-]+)$", asking.metrics_text(endpoint), re.MULTILINE
        )
        return {m[1]: float(m[2]) for m in samples if not m[1].endswith("_bucket")}
