"""What is asked: a model, its traffic, its targets, its accuracy floor, and what may be spent.

Plain validated data. Knows nothing of files (load.py), schedules (workload.py) or engines.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from scenarios.space import Value, digest


class Spec(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Variation = Annotated[float, Field(gt=0, le=10)]
ENVIRONMENT_NAME_RULE = "must be the NAME of an environment variable, such as MY_API_KEY, never the key itself"
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


def _both_or_none(one_of_two: object) -> str:
    return "none" if one_of_two is None else "both"


class ModelRef(Spec):
    """Which weights. Exactly one of `name` (the model store's), `path` (a local GGUF file) or `served_as`."""

    name: Name | None = Field(None, description="A model of the store: see `autotune models list`.")
    path: str | None = Field(None, description="A local GGUF file; relative to the scenario file.")
    served_as: str | None = Field(None, description="What an attached endpoint calls it in `model`.")
    context_tokens: Annotated[int, Field(ge=64, le=10**7)] = Field(
        512,
        description="Longest prompt plus answer, in tokens, that one request may need. A contract, not a knob.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ModelRef":
        given = [k for k in ("name", "path", "served_as") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(f"exactly one of name, path, served_as must be given, got {' and '.join(given) or 'none'}")
        return self

    @property
    def label(self) -> str:
        return self.name or self.served_as or str(self.path)


class EngineSpec(Spec):
    """Which server. `attached` measures one that is already running."""

    name: Name = "llamacpp"
    python: str | None = Field(None, description="Interpreter of the engine's own virtual environment.")
    base_url: str | None = Field(None, description="attached: e.g. http://127.0.0.1:8000/v1")
    api_key_env: str | None = Field(None, description="attached: NAME of the environment variable with the key.")
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(None, description="Fixed port; default: a free one.")
    start_timeout_s: Positive = 120.0
    hang_timeout_s: Positive = Field(20.0, description="No token for so long with work in flight is a hang.")

    @model_validator(mode="after")
    def _attached_has_url(self) -> "EngineSpec":
        if (self.name == "attached") != (self.base_url is not None):
            raise ValueError("base_url is needed with name: attached, and only there")
        if self.name != "attached" and self.api_key_env is not None:
            raise ValueError("api_key_env has a meaning only with name: attached")
        return self

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^\s/@]+(/\S*)?$", url):
            raise ValueError("must look like http://127.0.0.1:8000/v1, without a user or password")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """The message does not repeat what was given: it may be the key itself."""
        if name is not None and not re.match(r"[A-Za-z_][A-Za-z0-9_]*$", name):
            raise ValueError(ENVIRONMENT_NAME_RULE)
        return name


class Rate(Spec):
    """Requests per second: absolute, or a multiple of what the default configuration can hold."""

    rps: Annotated[float, Field(gt=0, le=100_000)] | None = None
    times_default_capacity: Positive | None = None

    @model_validator(mode="after")
    def _one(self) -> "Rate":
        if (self.rps is None) == (self.times_default_capacity is None):
            raise ValueError(f"exactly one of rps, times_default_capacity must be given, got {_both_or_none(self.rps)}")
        return self


class Arrivals(Spec):
    """When requests come. `gamma` needs the coefficient of variation of the gaps (1 = Poisson)."""

    process: Literal["poisson", "constant", "gamma", "closed"] = "poisson"
    rate: Rate | None = Field(None, description="The traffic's rate; left out, objective `goodput` searches for it.")
    gap_cv: Variation | None = Field(None, description="gamma: coefficient of variation of the gaps.")
    concurrency: Count | None = Field(None, description="closed: requests kept in flight.")
    think_time_s: Annotated[float, Field(ge=0)] | None = Field(None, description="closed: pause after an answer.")

    @model_validator(mode="after")
    def _consistent(self) -> "Arrivals":
        if (self.process == "gamma") != (self.gap_cv is not None):
            raise ValueError("gap_cv is needed with process: gamma, and only there")
        if (self.process == "closed") != (self.concurrency is not None):
            raise ValueError("concurrency is needed with process: closed, and only there")
        if self.process == "closed" and self.rate is not None:
            raise ValueError("rate has no meaning with process: closed")
        if self.process != "closed" and self.think_time_s is not None:
            raise ValueError("think_time_s has a meaning only with process: closed")
        return self


class Lengths(Spec):
    """A distribution of token counts, clipped to [min, max]."""

    distribution: Literal["fixed", "uniform", "normal", "lognormal"] = "fixed"
    mean: Positive | None = Field(None, description="fixed, normal, lognormal: mean number of tokens.")
    cv: Variation | None = Field(None, description="normal, lognormal: standard deviation / mean.")
    min: Count = 1
    max: Count | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Lengths":
        if self.distribution == "uniform":
            if self.max is None or self.mean is not None:
                raise ValueError("uniform needs min and max, and no mean")
        elif self.mean is None:
            raise ValueError(f"{self.distribution} needs mean")
        if (self.distribution in ("normal", "lognormal")) != (self.cv is not None):
            raise ValueError("cv is needed with normal and lognormal, and only there")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max must be >= min ({self.min}), got {self.max}")
        if self.mean is not None and not self.min <= self.mean <= (self.max or self.mean):
            raise ValueError(f"mean must lie between min and max, got {self.mean}")
        return self

    @property
    def longest(self) -> int:
        """The most tokens a draw can give: shapes without max are cut at four standard deviations."""
        if self.max is not None:
            return self.max
        assert self.mean is not None
        return math.ceil(self.mean * (1 + 4 * (self.cv or 0)))


class Workload(Spec):
    """The traffic: when requests come, how long they are, what they share."""

    api: Literal["completions", "chat"] = Field(
        "completions",
        description="chat: the model's template adds its own tokens to every prompt; leave room for them.",
    )
    stream: bool = True
    arrivals: Arrivals = Arrivals()
    prompt_tokens: Lengths
    output_tokens: Lengths
    shared_prefix_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="Every prompt begins with the same so many tokens (a system prompt)."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    timeout_s: Positive = 30.0
    seed: Seed = 1

    @property
    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))

    @property
    def longest_tokens(self) -> int:
        """Prompt plus answer of the longest request that can be drawn."""
        return self.shared_prefix_tokens + self.prompt_tokens.longest + self.output_tokens.longest


Metric = Literal["ttft", "tpot", "e2e"]


class Target(Spec):
    """One latency promise: this percentile stays at or below `target_ms`, or a multiple of the unloaded latency."""

    percentile: Annotated[float, Field(gt=50, lt=100)] = 95.0
    target_ms: Positive | None = None
    times_unloaded: Annotated[float, Field(gt=1)] | None = Field(
        None, description="Multiple of the reference's median latency without load, resolved once per study."
    )

    @model_validator(mode="after")
    def _one(self) -> "Target":
        if (self.target_ms is None) == (self.times_unloaded is None):
            raise ValueError(
                f"exactly one of target_ms, times_unloaded must be given, got {_both_or_none(self.target_ms)}"
            )
        return self


class Slo(Spec):
    """Latency promises by metric (definitions: docs/metrics.md). A failed request misses all of them."""

    ttft: Target | None = None
    tpot: Target | None = None
    e2e: Target | None = None
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(0.05, description="Error probability of a verdict.")

    @model_validator(mode="after")
    def _some(self) -> "Slo":
        if not self.targets:
            raise ValueError("at least one of ttft, tpot, e2e must be given")
        return self

    @property
    def targets(self) -> dict[Metric, Target]:
        named: dict[Metric, Target | None] = {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e}
        return {metric: target for metric, target in named.items() if target is not None}

    @property
    def resolved(self) -> bool:
        return all(t.target_ms is not None for t in self.targets.values())


class QualityTask(Spec):
    """A set of questions with known answers, and by how much accuracy may fall below the reference's."""

    task: str = Field(description="cloze, arithmetic, copy, or the path of a JSONL file.")
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(description="Tolerated loss of accuracy, 0.03 = 3 points.")


class QualityGate(Spec):
    """Non-inferiority to the reference on every task: lower confidence bound of the difference above −margin."""

    tasks: tuple[QualityTask, ...] = ()
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    screen_items: Annotated[int, Field(ge=10)] = Field(
        60, description="Items a task gives in a trial; finalists do all."
    )

    @model_validator(mode="after")
    def _each_once(self) -> "QualityGate":
        names = [t.task for t in self.tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"tasks must name each task once, got {name} {names.count(name)} times")
        return self


class Search(Spec):
    """How the space is searched, and which part of it."""

    tuner: Name = "tpe"
    seed: Seed = 0
    knobs: dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="Knob -> values to try. Knobs not named keep the engine's default."
    )
    finalists: Annotated[int, Field(ge=1, le=8)] = 2
    tie: Share = Field(0.02, description="Within this share of the best, fewer changed knobs win.")

    @field_validator("knobs")
    @classmethod
    def _distinct(cls, knobs: dict[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
        for name, values in knobs.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must list each value once, got {', '.join(map(str, values))}")
        return knobs


class Budget(Spec):
    """What may be spent. Seconds are per step; the study's own limit is `wall_clock_s`."""

    trials: Count = 8
    wall_clock_s: Positive | None = None
    warmup_s: Annotated[float, Field(ge=0)] = 2.0
    ramp_s: Positive = Field(10.0, description="Length of the ramp that brackets a configuration's capacity.")
    hold_s: Positive = Field(8.0, description="Length of one hold at a constant rate.")
    holds: Count = Field(3, description="Most holds per capacity estimate.")
    finalist_blocks: Annotated[int, Field(ge=2, le=100)] = Field(
        3, description="Paired repeats of finalists and default."
    )
    certify_s: Positive = Field(60.0, description="Longest run to certify the winner's P95 promise.")
    void_retries: Annotated[int, Field(ge=0, le=100)] = 2


class Scenario(Spec):
    """Everything asked of a study."""

    name: Name = Field(description="Names the study.")
    description: str = ""
    model: ModelRef
    engine: EngineSpec = EngineSpec()
    workload: Workload
    slo: Slo
    quality: QualityGate = QualityGate()
    objective: Literal["goodput", "meet", "latency"] = "goodput"
    search: Search = Search()
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _consistent(self) -> "Scenario":
        closed = self.workload.arrivals.process == "closed"
        if self.objective != "goodput" and not closed and self.workload.arrivals.rate is None:
            raise ValueError(f"objective {self.objective} needs workload.arrivals.rate: the rate to meet")
        if self.objective == "goodput" and closed:
            raise ValueError("objective goodput searches for a rate: workload.arrivals.process cannot be closed")
        longest = self.workload.longest_tokens
        if longest > self.model.context_tokens:
            raise ValueError(
                f"model.context_tokens must hold the longest request: {longest} tokens, got {self.model.context_tokens}"
            )
        if not self.workload.stream and self.slo.ttft is not None:
            raise ValueError("slo.ttft is the time to the first token: it needs workload.stream: true")
        if not self.workload.stream and self.slo.tpot is not None:
            raise ValueError("slo.tpot is a time between tokens: it needs workload.stream: true")
        if self.slo.tpot is not None and self.workload.output_tokens.longest < 2:
            raise ValueError("slo.tpot is a time between tokens: workload.output_tokens must reach 2")
        for metric, target in self.slo.targets.items():
            if target.target_ms is not None and target.target_ms >= self.workload.timeout_s * 1000:
                raise ValueError(
                    f"slo.{metric}.target_ms must be less than workload.timeout_s"
                    f" ({self.workload.timeout_s:g} s), got {target.target_ms:g} ms"
                )
        if (self.engine.name == "attached") != (self.model.served_as is not None):
            raise ValueError("model.served_as is needed with engine.name: attached, and only there")
        return self

    @property
    def digest(self) -> str:
        return digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
