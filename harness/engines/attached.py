"""An OpenAI-compatible server that is already running: measured, never started, stopped or configured.

Knows only its address, and what it was found to offer; the key comes from the environment variable that the scenario
names.
"""

import os

from harness.engines import asking, probing
from harness.engines.base import Endpoint, HostLimits, LaunchPlan, ResolvedModel
from harness.errors import ConfigurationImpossible, FailureClass
from scenarios.errors import UserError
from scenarios.space import SearchSpace, ServingConfig
from scenarios.spec import EngineSpec


def checked_key(spec: EngineSpec) -> None:
    """Raises UserError where the variable that should hold the key holds none."""
    if spec.api_key_env is not None and not os.environ.get(spec.api_key_env):
        raise UserError(f"engine.api_key_env: environment variable {spec.api_key_env} is not set")


class Attached:
    name = "attached"

    def __init__(self) -> None:
        self._found: dict[str, probing.Offers] = {}  # by address

    def version(self, spec: EngineSpec | None = None) -> str:
        """Of the server, where it says."""
        if spec is None or spec.base_url is None:
            return "attached (unknown)"
        said = probing.server_at(spec.base_url.rstrip("/"), spec.api_key_env)
        return f"attached ({said or 'unknown'})"

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:  # noqa: ARG002 - the contract's shape
        return SearchSpace(self.name, ())

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:  # noqa: ARG002
        if config.knobs:
            raise ConfigurationImpossible("an attached endpoint has no knobs: it runs as somebody else started it")
        checked_key(spec)
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

    def probe(self, endpoint: Endpoint) -> tuple[Endpoint, tuple[str, ...]]:
        """Asks once: the server of a study stays the same."""
        if endpoint.base_url not in self._found:
            self._found[endpoint.base_url] = probing.ask(endpoint)
        found = self._found[endpoint.base_url]
        return found.endpoint, found.lacking

    def classify(self, log: str, exit_code: int | None) -> FailureClass | None:  # noqa: ARG002 - the contract's shape
        return None

    def tokenize(self, endpoint: Endpoint, text: str) -> list[int] | None:
        """By the route of whichever server it is."""
        found = self._found.get(endpoint.base_url)
        return probing.tokens(endpoint, found.tokenizer, text) if found and found.tokenizer else None

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        found = self._found.get(endpoint.base_url)
        return asking.metrics(endpoint, found.metrics_prefix) if found and found.metrics_prefix is not None else {}
