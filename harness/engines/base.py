"""What an engine must be able to do. One file, one entry point, one class like this.

Knows nothing of load, targets or search. The contract suite is tests/contract/engine_suite.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from harness.errors import FailureClass
from scenarios.errors import UserError
from scenarios.space import SearchSpace, ServingConfig, Value
from scenarios.spec import EngineSpec, ModelRef


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """Weights found on this machine: file of every variant that is built, by variant name."""

    ref: ModelRef
    label: str
    reference_variant: str
    variants: Mapping[str, Path] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    repositories: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # fetched by the engine: name, revision
    draft: "ResolvedModel | None" = None  # of `model.draft`; None: none is asked for, or the model's own layers
    unbuilt: Mapping[str, str] = field(default_factory=dict)  # variant that could be here -> why it is not

    def with_draft(self, draft: "ResolvedModel") -> "ResolvedModel":
        digests = {**self.digests, "draft": draft.digests[draft.reference_variant]}
        return replace(self, draft=draft, digests=digests)


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What the space and the memory plan may count on."""

    cores: int
    memory_bytes: int
    gpu_memory_bytes: tuple[int, ...] = ()  # of each GPU
    bfloat16: bool = True  # the processor computes in it; False: it is emulated


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Pure result of ``plan``: what to run, what it should cost, what to wait for. Exported as it is.

    ``argv`` holds ``{port}`` where the port goes; None: nothing to launch (attached).
    """

    config: ServingConfig
    argv: tuple[str, ...] | None
    env: Mapping[str, str]
    base_url: str  # may hold {port}
    served_model: str
    health_path: str
    expected_memory_bytes: int | None
    memory_explained: str
    deploy_argv: tuple[str, ...] = ()  # the same flags behind the program that people install
    request_extras: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"ignore_eos": True}: exact output lengths
    notices: tuple[str, ...] = ()  # what was left out of argv, for people
    simulated: bool = False  # a stated law is measured, no hardware: whatever is printed says so


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that answers. ``root_url`` has /health and /metrics, ``base_url`` has ``route`` for a single prompt."""

    root_url: str
    base_url: str
    served_model: str
    api_key_env: str | None = None
    request_extras: Mapping[str, Any] = field(default_factory=dict)  # None: such a key is not sent
    route: Literal["/completions", "/chat/completions"] = "/completions"


def root_of(base_url: str) -> str:
    return base_url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class ServerNames:
    """What a server's `metrics` call the things that most servers tell; None: it does not tell them.

    ``ttft``, ``tpot``, ``e2e``: histograms of seconds, NAME_sum and NAME_count. An engine's attribute ``server_names``,
    which is optional: without it the server's own figures are not looked at.
    """

    running: str | None = None
    waiting: str | None = None
    kv_usage: str | None = None
    preemptions: str | None = None
    prefix_hits: str | None = None
    prefix_queries: str | None = None
    accepted: str | None = None
    drafted: str | None = None
    ttft: str | None = None
    tpot: str | None = None
    e2e: str | None = None


class Engine(Protocol):
    """Turns a serving configuration into a running endpoint."""

    name: str

    def version(self, spec: EngineSpec | None = None) -> str:
        """Of the engine in `spec.python`, else of the installed one.

        Raises EngineNotInstalled with the command that installs it.
        """

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:
        """Every knob with the values that make sense for this model on this host; defaults are the engine's."""

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:
        """Same inputs, same argv; starts nothing. Raises ConfigurationImpossible with the reason."""

    def classify(self, log: str, exit_code: int | None) -> FailureClass | None:
        """The failure class that the log's words or the exit status point to; None: not this engine's words."""

    def tokenize(self, endpoint: Endpoint, text: str) -> list[int] | None:
        """Token ids by the server's own tokenizer; None where it cannot be asked."""

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        """Counters of the engine's own /metrics by short name; empty where there are none."""


def presets(engine: Engine) -> Mapping[str, Mapping[str, Value]]:
    """Configurations that the engine's makers recommend, by name: its attribute ``presets``, which is optional.

    They are controls like the defaults: measured first and outside the budget.
    """
    declared: Mapping[str, Mapping[str, Value]] = getattr(engine, "presets", {})
    return declared


def check_loads(engine: Engine, model: ModelRef) -> None:
    """Raises UserError where ``engine`` cannot load what ``model`` asks for beside its weights.

    What it can is in two attributes, both optional: ``dummy_weights`` and ``draft_methods``.
    """
    if model.weights == "dummy" and not getattr(engine, "dummy_weights", False):
        raise UserError(f"model.weights: {engine.name} has no dummy weights: leave model.weights out, or take vllm")
    methods: tuple[str, ...] = getattr(engine, "draft_methods", ())
    if model.draft is not None and model.draft.method not in methods:
        raise UserError(
            f"model.draft.method: {engine.name} drafts with {', '.join(methods) or 'no weights of its own'}, "
            f"got {model.draft.method}"
        )


@runtime_checkable
class SaysWhatItRuns(Protocol):
    """An engine whose log names the settings that it resolved, so that they can be compared with those asked for."""

    def disagreements(self, plan: LaunchPlan, log: str) -> tuple[str, ...]:
        """One sentence for each setting that is another than asked. Called once the engine is ready."""


@runtime_checkable
class FindsOut(Protocol):
    """An engine that does not know beforehand what its server offers."""

    def probe(self, endpoint: Endpoint) -> tuple[Endpoint, tuple[str, ...]]:
        """How the server is to be asked, and one sentence for each thing it lacks: what follows from that.

        Raises httpx.HTTPError where nobody answers.
        """
