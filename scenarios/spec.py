"""What is asked: a model, its traffic, its targets, its accuracy floor, and what may be spent.

Plain validated data. Knows nothing of files (load.py), schedules (workload.py) or engines.
"""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from scenarios.fields import Count, Name, Positive, Seed, Share, Spec
from scenarios.space import Value, digest
from scenarios.traffic import Promises, Target, Workload

MOST_BLOCKS = 100
ENVIRONMENT_NAME_RULE = "must be the NAME of an environment variable, such as MY_API_KEY, never the key itself"


class DraftRef(Spec):
    """Weights that draft tokens for the model to verify: `name` or `path`, as of the model."""

    method: Literal["draft_model", "eagle", "eagle3", "mtp"] = Field(
        description="draft_model: a smaller model; eagle, eagle3, mtp: a head trained for this model."
    )
    name: Name | None = Field(None, description="A model of the store: see `autotune models list`.")
    path: str | None = Field(
        None, description="A folder in Hugging Face format; relative to the scenario file. mtp: the model's own layers."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "DraftRef":
        given = [k for k in ("name", "path") if getattr(self, k)]
        if len(given) > 1 or (not given and self.method != "mtp"):
            raise ValueError(f"exactly one of name, path must be given, got {' and '.join(given) or 'none'}")
        return self


class ModelRef(Spec):
    """Which weights: exactly one of `name` (of the model store), `path` (a GGUF file), `served_as`, `simulated`."""

    name: Name | None = Field(None, description="A model of the store: see `autotune models list`.")
    path: str | None = Field(
        None, description="A local GGUF file, or a folder in Hugging Face format; relative to the scenario file."
    )
    served_as: str | None = Field(None, description="What an attached endpoint calls it in `model`.")
    simulated: Name | None = Field(None, description="A shape of the simulated engine, without weights: e.g. 8b.")
    weights: Literal["dummy"] | None = Field(
        None, description="dummy: random ones of the right shape, for a study of speed alone: its answers are noise."
    )
    draft: DraftRef | None = Field(None, description="What speculative decoding may draft with, besides the text.")
    context_tokens: Annotated[int, Field(ge=64, le=10**7)] = Field(
        512,
        description="Longest prompt plus answer, in tokens, that one request may need. A contract, not a knob.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ModelRef":
        sources = ("name", "path", "served_as", "simulated")
        given = [k for k in sources if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(sources)} must be given, got {' and '.join(given) or 'none'}")
        for key in ("weights", "draft"):
            if getattr(self, key) is not None and given[0] not in ("name", "path"):
                raise ValueError(f"{key} has a meaning only with name or path")
        if self.weights and self.draft:
            raise ValueError(
                "draft needs real weights: how many drafts a dummy accepts is luck; leave out weights, or draft"
            )
        return self

    @property
    def label(self) -> str:
        simulated = f"{self.simulated}-simulated" if self.simulated else None
        return self.name or self.served_as or simulated or str(self.path)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0 and "@" not in url
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False


class EngineSpec(Spec):
    """Which server. `attached` measures one that is already running; `simulated` follows a stated law."""

    name: Name = "llamacpp"
    python: str | None = Field(None, description="Interpreter of the engine's own virtual environment.")
    base_url: str | None = Field(None, description="attached: e.g. http://127.0.0.1:8000/v1")
    api_key_env: str | None = Field(None, description="attached: NAME of the environment variable with the key.")
    accelerator: Name | None = Field(None, description="simulated: h100, a100, l40s, rtx4090 or laptop-cpu.")
    accelerators: Annotated[int, Field(ge=1, le=64)] | None = Field(None, description="simulated: how many; default 1.")
    version: Literal["1", "2"] | None = Field(
        None, description="simulated: the release that is installed, with the flags it knows; default the newest."
    )
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

    @model_validator(mode="after")
    def _simulated_has_accelerator(self) -> "EngineSpec":
        if (self.name == "simulated") != (self.accelerator is not None):
            raise ValueError(f"accelerator is needed with name: simulated, and only there; got name: {self.name}")
        for key in ("accelerators", "version"):
            if self.name != "simulated" and getattr(self, key) is not None:
                raise ValueError(f"{key} has a meaning only with name: simulated")
        return self

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not _is_http(url):
            raise ValueError("must look like http://127.0.0.1:8000/v1, without a user or password")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """The message does not repeat what was given: it may be the key itself."""
        if name is not None and not re.match(r"[A-Za-z_][A-Za-z0-9_]*$", name):
            raise ValueError(ENVIRONMENT_NAME_RULE)
        return name


class Slo(Promises):
    """Latency promises of all requests together, by metric; a class of the workload has its own in its `slo`."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(0.05, description="Error probability of a verdict.")


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

    tuner: Name = "gp"
    seed: Seed = 0
    knobs: dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="Knob -> values to try. Knobs not named keep the engine's default."
    )
    control: Literal["random"] | None = Field(
        None, description="Search again by this strategy for as many seconds, and tell which found more."
    )
    transfer: tuple[str, ...] = Field(
        (),
        description="Run folders, relative to the scenario file, or mlflow:RUN_ID, of earlier studies whose best "
        "configurations go first.",
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
    wall_clock_s: Positive | None = Field(
        None, description="Of all trials together; an attempt that was void and repeated does not count."
    )
    warmup_s: Annotated[float, Field(ge=0)] = Field(
        2.0, description="At the start of each hold, not judged: longer than an answer under load takes."
    )
    ramp_s: Positive = Field(10.0, description="Length of the ramp that brackets a configuration's capacity.")
    hold_s: Positive = Field(8.0, description="Length of one hold at a constant rate.")
    holds: Count = Field(3, description="Most holds per capacity estimate.")
    finalist_blocks: Annotated[int, Field(ge=2, le=MOST_BLOCKS)] = Field(
        3,
        description="Paired repeats of finalists and default. A gain's interval is Student's: at 95 % it reaches 12.7 "
        "standard errors to either side with two, 4.3 with three, 3.2 with four.",
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
        process = self.workload.arrivals.process
        if self.objective != "goodput" and process not in ("closed", "trace") and self.workload.arrivals.rate is None:
            raise ValueError(f"objective {self.objective} needs workload.arrivals.rate: the rate to meet")
        if self.objective == "goodput" and process == "closed":
            raise ValueError("objective goodput searches for a rate: workload.arrivals.process cannot be closed")
        longest = self.workload.longest_tokens
        if longest > self.model.context_tokens:
            raise ValueError(
                f"model.context_tokens must hold the longest request: {longest} tokens, got {self.model.context_tokens}"
            )
        if (self.engine.name == "attached") != (self.model.served_as is not None):
            raise ValueError("model.served_as is needed with engine.name: attached, and only there")
        if (self.engine.name == "simulated") != (self.model.simulated is not None):
            raise ValueError("model.simulated is needed with engine.name: simulated, and only there")
        if self.model.weights == "dummy" and self.quality.tasks:
            raise ValueError(
                "quality.tasks cannot be asked of model.weights: dummy, whose answers are noise: leave out the tasks "
                "(speed alone is studied), or model.weights (the real ones are loaded)"
            )
        self._check_targets()
        return self

    def _check_targets(self) -> None:
        if not self.targets:
            raise ValueError("slo must have at least one of ttft, tpot, e2e (or a class of the workload has one)")
        outputs = {part.name: part.traffic.longest_turn_tokens[1] for part in self.workload.mix}
        for name, target in self.targets.items():
            traffic_class, _, metric = name.rpartition(".")
            section = f"workload.classes ({traffic_class}) slo.{metric}" if traffic_class else f"slo.{metric}"
            if not self.workload.stream and metric == "ttft":
                raise ValueError(f"{section} is the time to the first token: it needs workload.stream: true")
            if not self.workload.stream and metric == "tpot":
                raise ValueError(f"{section} is a time between tokens: it needs workload.stream: true")
            if metric == "tpot" and outputs.get(traffic_class, self.workload.longest_output_tokens) < 2:
                raise ValueError(f"{section} is a time between tokens: workload.output_tokens must reach 2")
            if target.target_ms is not None and target.target_ms >= self.workload.timeout_s * 1000:
                raise ValueError(
                    f"{section}.target_ms must be less than workload.timeout_s"
                    f" ({self.workload.timeout_s:g} s), got {target.target_ms:g} ms"
                )

    @property
    def targets(self) -> dict[str, Target]:
        """Every latency promise by its name: `ttft` of all requests, `chat.ttft` of the class chat."""
        own = {f"{c.name}.{metric}": t for c in self.workload.classes for metric, t in c.slo.targets.items()}
        return {**self.slo.targets, **own}

    @property
    def targets_are_absolute(self) -> bool:
        return all(t.target_ms is not None for t in self.targets.values())

    @property
    def digest(self) -> str:
        return digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
