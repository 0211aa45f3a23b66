"""Knobs, the space they span, and one point in it.

Knows nothing of how an engine spells a knob on its command line, nor of how a tuner samples.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from scenarios.errors import UserError

Value = str | int | float | bool
Effect = Literal["precision", "memory", "batching", "speculation", "compute"]


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON of ``content``: independent of key order. 64 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Knob:
    """One tunable setting of an engine: a finite, ordered list of values and the engine's own default.

    ``when``: (other knob, values of it) under which this knob has a meaning; None means always.
    ``affects_output``: whether the generated text may change, so that quality must be measured again.
    ``recompiles``: whether another value makes the engine compile its kernels again.
    ``repair``: a remedy for a configuration that fails: searched only where the scenario names it.
    ``spoils``: latencies, such as tpot, whose promise would lose its meaning: not offered beside such a target.
    """

    name: str
    choices: tuple[Value, ...]
    default: Value
    effect: Effect
    doc: str
    affects_output: bool = False
    when: tuple[str, tuple[Value, ...]] | None = None
    recompiles: bool = False
    repair: bool = False
    spoils: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.choices, self.name
        assert len(set(self.choices)) == len(self.choices), self.name

    def active(self, knobs: Mapping[str, Value]) -> bool:
        return self.when is None or knobs.get(self.when[0]) in self.when[1]

    def parse(self, text: str) -> Value:
        """The choice that ``text`` spells. Raises UserError naming what is allowed."""
        for choice in self.choices:
            if spelling(choice) == text.strip().lower():
                return choice
        allowed = ", ".join(spelling(c) for c in self.choices)
        raise UserError(f"{self.name}={text}: allowed values are {allowed}")


def spelling(value: Value) -> str:
    """As people write it: in lower case."""
    return str(value).lower()


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """Engine plus the value of every knob that is active. Immutable; equal content has equal ``digest``."""

    engine: str
    knobs: Mapping[str, Value] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest(self.to_dict())

    @property
    def short(self) -> str:
        return self.digest[:10]

    def to_dict(self) -> dict[str, Any]:
        return {"engine": self.engine, "knobs": dict(sorted(self.knobs.items())), "env": dict(self.env)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ServingConfig":
        return cls(engine=data["engine"], knobs=dict(data["knobs"]), env=dict(data.get("env", {})))

    def with_knobs(self, **knobs: Value) -> "ServingConfig":
        return replace(self, knobs={**self.knobs, **knobs})


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The knobs an engine offers, narrowed by a scenario. Order matters: a ``when`` points backwards.

    ``absent``: knob, value and why it is not offered here, though it is elsewhere. Such a value is left out of the
    space, with a notice where the scenario asks for it, and never reaches the engine.
    """

    engine: str
    knobs: tuple[Knob, ...]
    absent: tuple[tuple[str, Value, str], ...] = ()

    def __getitem__(self, name: str) -> Knob:
        for knob in self.knobs:
            if knob.name == name:
                return knob
        import difflib  # noqa: PLC0415 - only on the way to an error

        names = [k.name for k in self.knobs]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise UserError(f"{self.engine} has no knob `{name}`{hint} (its knobs: {', '.join(names) or 'none'})")

    def default(self) -> ServingConfig:
        """The engine's plain defaults."""
        return self.complete({})

    def complete(self, chosen: Mapping[str, Value]) -> ServingConfig:
        """``chosen`` plus defaults for every other active knob; knobs that are not active are left out.

        Raises UserError for an unknown knob or a value that is not among its choices.
        """
        wanted = {name: self[name].parse(str(value)) for name, value in chosen.items()}
        values: dict[str, Value] = {}
        for knob in self.knobs:
            if knob.active(values):
                values[knob.name] = wanted.get(knob.name, knob.default)
        return ServingConfig(self.engine, values)

    def without(self, why_not: Callable[[Knob, Value], str | None]) -> "SearchSpace":
        """Without the values that ``why_not`` has a reason against; a knob's default always stays."""
        kept, absent = [], []
        for knob in self.knobs:
            reasons = {value: why_not(knob, value) for value in knob.choices if value != knob.default}
            absent += [(knob.name, value, why) for value, why in reasons.items() if why]
            kept.append(replace(knob, choices=tuple(v for v in knob.choices if not reasons.get(v))))
        return replace(self, knobs=tuple(kept), absent=(*self.absent, *absent))

    def narrowed(self, only: Mapping[str, tuple[Value, ...]]) -> "SearchSpace":
        """Each knob restricted to ``only[knob]`` (order kept); the others stay at their default alone.

        A default outside the restriction stays the default: the control is always the engine's own.
        An empty ``only`` leaves the space as it is, but for what is only a repair.
        """
        if not only:
            kept = tuple(replace(k, choices=(k.default,)) if k.repair else k for k in self.knobs)
            return replace(self, knobs=kept, absent=())
        absent = tuple(a for a in self.absent if spelling(a[1]) in map(spelling, only.get(a[0], ())))
        left_out = {(name, spelling(value)) for name, value, _ in absent}
        wanted = {}
        for name, values in only.items():
            known = [value for value in values if (name, spelling(value)) not in left_out]
            if known:
                wanted[name] = tuple(self[name].parse(str(value)) for value in known)
        knobs = tuple(replace(k, choices=wanted.get(k.name, (k.default,))) for k in self.knobs)
        return replace(self, knobs=knobs, absent=absent)

    @property
    def notices(self) -> tuple[str, ...]:
        """What was asked for and is left out, one line each."""
        return tuple(f"{name}={spelling(value)} is left out: {why}" for name, value, why in self.absent)

    @property
    def free(self) -> tuple[Knob, ...]:
        """The knobs that have more than one value left."""
        return tuple(k for k in self.knobs if len(k.choices) > 1)

    def output_key(self, config: ServingConfig) -> tuple[Value | None, ...]:
        """Equal where the engine says that the answers are equal, too: of the knobs that may change them."""
        return tuple(config.knobs.get(k.name) for k in self.knobs if k.affects_output)

    def size(self) -> int:
        """Number of distinct configurations, or an upper bound where knobs are conditional."""
        return math.prod(len(k.choices) for k in self.knobs)

    def enumerate(self) -> Iterator[ServingConfig]:
        """Every distinct configuration once, in the order of the choices."""
        seen: set[str] = set()
        for combination in itertools.product(*(k.choices for k in self.knobs)):
            chosen = dict(zip((k.name for k in self.knobs), combination, strict=True))
            values: dict[str, Value] = {}
            for knob in self.knobs:
                if knob.active(values):
                    values[knob.name] = chosen[knob.name]
            config = ServingConfig(self.engine, values)
            if config.digest not in seen:
                seen.add(config.digest)
                yield config
