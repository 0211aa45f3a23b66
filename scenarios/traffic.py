"""The traffic that is asked for: when requests come, how long they are, what they share, who sends them.

Plain validated data. Knows nothing of schedules (workload.py), trace files (traces.py) or servers.
"""

import math
import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from scenarios.fields import Burstiness, Count, Positive, Seed, Share, Spec, Variation, both_or_none
from scenarios.space import digest

CLASS_NAME = r"[a-z0-9][a-z0-9-]{0,31}"


class Rate(Spec):
    """Requests per second: absolute, or a multiple of what the default configuration can hold."""

    rps: Annotated[float, Field(gt=0, le=100_000)] | None = None
    times_default_capacity: Positive | None = None

    @model_validator(mode="after")
    def _one(self) -> "Rate":
        if (self.rps is None) == (self.times_default_capacity is None):
            raise ValueError(f"exactly one of rps, times_default_capacity must be given, got {both_or_none(self.rps)}")
        return self


class Arrivals(Spec):
    """When requests come. `gamma` needs the coefficient of variation of the gaps (1 = Poisson).

    `trace` takes the times of `workload.trace`. With sessions, the process is that of their first turns.
    """

    process: Literal["poisson", "constant", "gamma", "closed", "trace"] = "poisson"
    rate: Rate | None = Field(
        None,
        description="Requests (not sessions) per second; left out, objective `goodput` searches for it, and a trace"
        " has its own.",
    )
    gap_cv: Burstiness | None = Field(None, description="gamma: coefficient of variation of the gaps.")
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
    """A distribution of counts (tokens, turns), clipped to [min, max].

    `empirical` draws from `values`, or from a column of a CSV or JSONL file.
    """

    distribution: Literal["fixed", "uniform", "normal", "lognormal", "empirical"] = "fixed"
    mean: Positive | None = Field(None, description="fixed, normal, lognormal: mean number.")
    cv: Variation | None = Field(None, description="normal, lognormal: standard deviation / mean.")
    min: Count = 1
    max: Count | None = None
    values: Annotated[tuple[Count, ...], Field(min_length=1)] | None = Field(
        None, description="empirical: numbers, each as likely as any other."
    )
    file: str | None = Field(None, description="empirical: a CSV or JSONL file; relative to the scenario file.")
    column: str | None = Field(None, description="empirical: the file's column with the numbers.")
    sha256: str | None = Field(None, description="Of the file; filled in when read, so that a changed one is noticed.")

    @model_validator(mode="after")
    def _consistent(self) -> "Lengths":
        self._has_its_parameters()
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max must be >= min ({self.min}), got {self.max}")
        if self.mean is not None and not self.min <= self.mean <= (self.max or self.mean):
            raise ValueError(f"mean must lie between min and max, got {self.mean}")
        return self

    def _has_its_parameters(self) -> None:
        empirical = self.distribution == "empirical"
        if not empirical and (self.values is not None or self.file is not None):
            raise ValueError("values and file have a meaning only with distribution: empirical")
        if empirical and (self.values is None) == (self.file is None):
            raise ValueError(f"empirical needs exactly one of values, file, got {both_or_none(self.values)}")
        if (self.file is None) != (self.column is None):
            raise ValueError("column is needed with file, and only there")
        if self.file is not None and self.max is None:
            raise ValueError("max is needed with file: the longest that can be drawn")
        if self.file is None and self.sha256 is not None:
            raise ValueError("sha256 has a meaning only with file")
        if self.distribution in ("uniform", "empirical"):
            if self.mean is not None or (self.distribution == "uniform" and self.max is None):
                needs = "min and max" if self.distribution == "uniform" else "values or file"
                raise ValueError(f"{self.distribution} needs {needs}, and no mean")
        elif self.mean is None:
            raise ValueError(f"{self.distribution} needs mean")
        if (self.distribution in ("normal", "lognormal")) != (self.cv is not None):
            raise ValueError("cv is needed with normal and lognormal, and only there")

    @property
    def longest(self) -> int:
        """The most a draw can give: shapes without max are cut at four standard deviations."""
        if self.max is not None:
            return self.max
        if self.values is not None:
            return max(self.min, *self.values)
        assert self.mean is not None
        return math.ceil(self.mean * (1 + 4 * (self.cv or 0)))


class Pauses(Spec):
    """A distribution of seconds; without max it is cut at four standard deviations above the mean."""

    distribution: Literal["fixed", "exponential", "lognormal"] = "fixed"
    mean: Annotated[float, Field(ge=0, le=1e6)] = Field(description="Mean seconds, before the cut.")
    cv: Variation | None = Field(None, description="lognormal: standard deviation / mean.")
    max: Positive | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Pauses":
        if (self.distribution == "lognormal") != (self.cv is not None):
            raise ValueError("cv is needed with lognormal, and only there")
        if self.distribution != "fixed" and self.mean == 0:
            raise ValueError(f"mean must be > 0 with {self.distribution}")
        if self.max is not None and self.mean > self.max:
            raise ValueError(f"mean must be <= max ({self.max:g}), got {self.mean:g}")
        return self

    @property
    def longest(self) -> float:
        if self.max is not None:
            return self.max
        cv = {"fixed": 0.0, "exponential": 1.0}.get(self.distribution, self.cv or 0.0)
        return self.mean * (1 + 4 * cv)


class Sessions(Spec):
    """Conversations: each turn's prompt is the whole history plus new tokens, sent after a pause.

    The answers in the history are made up, of the length asked: same seed, same bytes, whatever the server says.
    """

    turns: Lengths | None = Field(None, description="Requests of a conversation; with a trace, the trace's own.")
    think_time_s: Pauses | None = Field(None, description="From the end of an answer to the next turn.")


class SharedPrefix(Spec):
    """Prompts (conversations) that begin alike, as with system prompts.

    A share `reuse` begins with one of `pool` prefixes, each as likely; the others with as many tokens of their own.
    """

    tokens: Count
    pool: Count = 1
    reuse: Share = 1.0


class TraceFile(Spec):
    """Recorded traffic: its times with `arrivals.process: trace`, and its lengths where none are given.

    What the formats hold: docs/workloads.md.
    """

    file: str = Field(description="Relative to the scenario file.")
    format: Literal["azure", "burstgpt", "mooncake", "sharegpt"]
    start_s: Annotated[float, Field(ge=0)] = Field(0.0, description="The window begins so long after the first row.")
    seconds: Positive | None = Field(None, description="Length of the window; left out, to the end of the file.")
    time_scale: Positive = Field(1.0, description="Every gap is multiplied by it: 0.5 doubles the rate.")
    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of the requests that is kept, in whole sessions chosen by `seed`."
    )
    seed: Seed = 0
    fit: Literal["time", "thin"] = Field(
        "time",
        description="How another rate than the trace's own is reached: its clock runs faster or slower, or (below its"
        " own rate, in holds) whole sessions are left out.",
    )
    begin: Literal["start", "anywhere"] = Field(
        "start", description="anywhere: each seed begins at a place of its own; the window is read round."
    )
    max_prompt_tokens: Count | None = Field(None, description="Longer prompts are cut to it, and counted.")
    max_output_tokens: Count | None = Field(None, description="Longer answers are cut to it, and counted.")
    length_scale: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="Every length, and the blocks of shared prefixes, multiplied by it: to fit a small model."
    )
    malformed: Share = Field(0.01, description="A larger share of malformed rows, and the file is refused.")
    sha256: str | None = Field(None, description="Of the file; filled in when read, so that a changed one is noticed.")

    @model_validator(mode="after")
    def _consistent(self) -> "TraceFile":
        if self.format == "sharegpt":
            for name in ("start_s", "seconds"):
                if getattr(self, name):
                    raise ValueError(f"{name} has no meaning with format: sharegpt, which has no times")
            if self.length_scale != 1:
                raise ValueError("length_scale has no meaning with format: sharegpt, whose texts are used as they are")
        return self


class Traffic(Spec):
    """One kind of request: lengths, what is shared, conversations. Lengths left out are those of the trace."""

    prompt_tokens: Lengths | None = Field(
        None, description="Tokens of a prompt as the server counts them; of a later turn, what it adds."
    )
    output_tokens: Lengths | None = None
    shared_prefix_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="Every prompt begins with the same so many tokens (a system prompt), on top of its own."
    )
    shared_prefix: SharedPrefix | None = Field(None, description="Several prefixes, or not for every prompt.")
    sessions: Sessions | None = Field(None, description="Left out, every request stands alone.")
    trace: TraceFile | None = None

    @property
    def prefix(self) -> SharedPrefix | None:
        if self.shared_prefix_tokens:
            return SharedPrefix(tokens=self.shared_prefix_tokens)
        return self.shared_prefix

    @property
    def from_trace(self) -> bool:
        """Whether lengths and conversations are the trace's."""
        return self.prompt_tokens is None

    @property
    def longest_turn_tokens(self) -> tuple[int, int]:
        """Prompt and answer of the longest turn."""
        if self.prompt_tokens is None or self.output_tokens is None:
            assert self.trace is not None
            assert self.trace.max_prompt_tokens is not None
            assert self.trace.max_output_tokens is not None
            return self.trace.max_prompt_tokens, self.trace.max_output_tokens
        return self.prompt_tokens.longest, self.output_tokens.longest

    @property
    def longest_tokens(self) -> int:
        """Prompt plus answer of the longest request that can be drawn, history included."""
        turns = self.sessions.turns.longest if self.sessions and self.sessions.turns else 1
        return (self.prefix.tokens if self.prefix else 0) + turns * sum(self.longest_turn_tokens)

    def _check_traffic(self) -> None:
        if self.shared_prefix_tokens and self.shared_prefix is not None:
            raise ValueError("exactly one of shared_prefix_tokens, shared_prefix may be given, got both")
        if (self.prompt_tokens is None) != (self.output_tokens is None):
            missing = "prompt_tokens" if self.prompt_tokens is None else "output_tokens"
            raise ValueError(f"{missing} is missing: give both prompt_tokens and output_tokens, or neither")
        if not self.from_trace:
            if self.sessions is not None and self.sessions.turns is None:
                raise ValueError("sessions.turns is missing: how many requests a conversation has")
            return
        if self.trace is None:
            raise ValueError("prompt_tokens is missing: give prompt_tokens and output_tokens, or a trace")
        if self.trace.max_prompt_tokens is None or self.trace.max_output_tokens is None:
            raise ValueError("trace needs max_prompt_tokens and max_output_tokens: the longest request that is sent")
        if self.prefix is not None:
            raise ValueError("shared_prefix needs prompt_tokens: what the prompts of a trace share is the trace's")
        if self.sessions is not None and self.sessions.turns is not None:
            raise ValueError("sessions.turns has no meaning here: the turns are those of the trace")


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
                f"exactly one of target_ms, times_unloaded must be given, got {both_or_none(self.target_ms)}"
            )
        return self


class Promises(Spec):
    """Latency promises by metric (definitions: docs/metrics.md). A failed request misses all of them."""

    ttft: Target | None = None
    tpot: Target | None = None
    e2e: Target | None = None

    @property
    def targets(self) -> dict[str, Target]:
        named: dict[str, Target | None] = {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e}
        return {metric: target for metric, target in named.items() if target is not None}


class TrafficClass(Traffic):
    """One of several kinds of traffic that come mixed, with latency promises of its own."""

    name: str = Field(description="Names the class: its metrics are called `name.ttft` and so on.")
    share: Positive = Field(1.0, description="Weight among the requests of all classes; weights need not sum to 1.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="Left out, that of the workload.")
    slo: Promises = Promises()

    @field_validator("name")
    @classmethod
    def _is_short(cls, name: str) -> str:
        if not re.fullmatch(CLASS_NAME, name):
            raise ValueError(f"must be 1 to 32 of a-z, 0-9, `-`, beginning with a letter or digit, got '{name[:60]}'")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "TrafficClass":
        self._check_traffic()
        if self.trace is not None and not self.from_trace:
            raise ValueError(f"trace is not used: the class {self.name} has prompt_tokens of its own")
        return self


class Part(NamedTuple):
    """A traffic class of a workload, or all of it under the name ``""``. ``share``: of the requests."""

    name: str
    share: float
    traffic: Traffic


class Workload(Traffic):
    """The traffic: when requests come, how long they are, what they share."""

    api: Literal["completions", "chat"] = Field(
        "completions",
        description="chat: a list of messages; the tokens that the model's template adds are part of the lengths asked"
        " where the server says how many they are.",
    )
    stream: bool = True
    arrivals: Arrivals = Arrivals()
    classes: tuple[TrafficClass, ...] = Field((), description="Kinds of traffic that come mixed.")
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    timeout_s: Positive = 30.0
    seed: Seed = 1

    @model_validator(mode="after")
    def _consistent(self) -> "Workload":
        self._check_times()
        if self.classes:
            self._check_classes()
        else:
            self._check_traffic()
            if self.trace is not None and not self.from_trace and self.arrivals.process != "trace":
                raise ValueError("trace is not used: give arrivals.process: trace, or leave prompt_tokens out")
        return self

    def _check_times(self) -> None:
        replayed = self.arrivals.process == "trace" and self.from_trace and not self.classes
        if any(t.trace is not None and t.trace.fit == "thin" for t in (self, *self.classes)) and not replayed:
            raise ValueError("trace.fit thin needs both times and lengths of the trace: a whole replay")
        if self.arrivals.process != "trace":
            return
        if self.trace is None:
            raise ValueError("trace is missing: arrivals.process: trace takes its times from it")
        if self.trace.format == "sharegpt":
            raise ValueError("trace.format sharegpt has no times: choose another arrivals.process")
        if replayed and self.sessions is not None:
            raise ValueError("sessions has no meaning here: the conversations, with their times, are the trace's")

    def _check_classes(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "shared_prefix_tokens", "shared_prefix", "sessions"):
            if getattr(self, name):
                raise ValueError(f"{name} belongs in each of the classes, where there are classes")
        if self.trace is not None and self.arrivals.process != "trace":
            raise ValueError("trace belongs in each of the classes, but for the times of arrivals.process: trace")
        names = [c.name for c in self.classes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"classes must name each class once, got {name} {names.count(name)} times")

    @property
    def mix(self) -> tuple[Part, ...]:
        """The classes with their shares of the requests, which sum to 1."""
        if not self.classes:
            return (Part("", 1.0, self),)
        total = sum(c.share for c in self.classes)
        return tuple(Part(c.name, c.share / total, c) for c in self.classes)

    def temperature_of(self, traffic_class: str) -> float:
        own = next((c.temperature for c in self.classes if c.name == traffic_class), None)
        return self.temperature if own is None else own

    @property
    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))

    @property
    def longest_tokens(self) -> int:
        """Prompt plus answer of the longest request that can be drawn."""
        return max(c.longest_tokens for c in self.classes) if self.classes else super().longest_tokens

    @property
    def longest_output_tokens(self) -> int:
        return max(part.traffic.longest_turn_tokens[1] for part in self.mix)
