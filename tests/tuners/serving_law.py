"""A serving engine as a formula: what a search meets there, without an engine and in microseconds.

Made to be unlike a sum of separate effects: seats, tokens per step and memory go together, some settings mean
something only under others, some configurations die of memory, scores are noisy, launches compile. Not a model of
any real engine: the world's coefficients are drawn from its number.
"""

import math
import random
from dataclasses import dataclass, field

from scenarios.space import Knob, SearchSpace, ServingConfig
from tuners.base import Trial

SPACE = SearchSpace(
    "law",
    (
        Knob("weights", ("bf16", "fp8", "int4"), "bf16", "precision", "", affects_output=True),
        Knob("kv_cache_dtype", ("auto", "fp8"), "auto", "memory", "", affects_output=True),
        Knob("gpu_memory_utilization", (0.85, 0.90, 0.95), 0.90, "memory", ""),
        Knob("max_num_seqs", (16, 32, 64, 128, 256, 512), 256, "batching", "", recompiles=True),
        Knob("max_num_batched_tokens", (512, 1024, 2048, 4096, 8192, 16384), 8192, "batching", ""),
        Knob("prefix_caching", (True, False), True, "memory", ""),
        Knob("speculation", ("none", "ngram", "draft"), "none", "speculation", "", recompiles=True),
        Knob("speculative_tokens", (2, 4), 4, "speculation", "", when=("speculation", ("ngram", "draft"))),
    ),
)


@dataclass
class ServingLaw:
    """One world. ``noise``: standard deviation of a score's logarithm."""

    number: int
    noise: float = 0.07
    coefficients: dict = field(default_factory=dict)

    def __post_init__(self):
        rng = random.Random(f"world {self.number}")
        self.coefficients = {
            "fp8": rng.uniform(0.05, 0.45), "int4": rng.uniform(-0.25, 0.5), "int4_loses": rng.random() < 0.4,
            "kv8": rng.uniform(-0.08, 0.2), "seats": rng.uniform(3.5, 8.5), "seats_curve": rng.uniform(0.05, 0.2),
            "tokens": rng.uniform(9.5, 13.0), "tokens_curve": rng.uniform(0.03, 0.14),
            "together": rng.uniform(0.0, 0.12),
            "prefix": rng.uniform(-0.06, 0.3), "ngram": rng.uniform(-0.2, 0.25), "draft": rng.uniform(-0.3, 0.4),
            "draft_seats": rng.uniform(0.05, 0.2), "four": rng.uniform(-0.15, 0.1), "room": rng.uniform(26, 46),
        }  # fmt: skip

    def needs(self, k) -> tuple[float, float]:
        """Gigabytes: what the planner sees, and what there is besides."""
        weights = {"bf16": 16.0, "fp8": 8.5, "int4": 5.0}[k["weights"]]
        draft = 1.5 if k["speculation"] == "draft" else 0.0
        return weights + draft + k["max_num_seqs"] * 0.01, k["max_num_batched_tokens"] * 0.0011

    def possible(self, config: ServingConfig) -> bool:
        seen, activations = self.needs(config.knobs)
        return seen + 0.5 * activations < self.coefficients["room"] * config.knobs["gpu_memory_utilization"]

    def starts(self, k) -> bool:
        """The peak of activations lives in what the cache was not given."""
        _, activations = self.needs(k)
        left = self.coefficients["room"] * (1.03 - k["gpu_memory_utilization"])
        return activations * (1.3 if k["weights"] == "int4" else 1.0) < 1.9 * left + 6

    def rate(self, k) -> float:
        """The true capacity in requests/s."""
        c = self.coefficients
        seats, tokens = math.log2(k["max_num_seqs"]), math.log2(k["max_num_batched_tokens"])
        seen, _ = self.needs(k)
        cache = max(0.5, c["room"] * k["gpu_memory_utilization"] - seen) * (
            2.0 if k["kv_cache_dtype"] == "fp8" else 1.0
        )
        useful = min(seats, math.log2(cache * 6))
        log = {"bf16": 0.0, "fp8": c["fp8"], "int4": c["int4"]}[k["weights"]]
        log += c["kv8"] * (k["kv_cache_dtype"] == "fp8")
        log -= c["seats_curve"] * (useful - c["seats"]) ** 2 + 0.03 * max(0.0, seats - useful)
        log -= c["tokens_curve"] * (tokens - c["tokens"]) ** 2
        log -= c["together"] * (tokens - seats - 5) ** 2 / 4
        log += c["prefix"] * k["prefix_caching"]
        if k["speculation"] != "none":
            log += c[k["speculation"]] - c["draft_seats"] * max(0.0, useful - 5)
            log += c["four"] * (k["speculative_tokens"] == 4)
        return 10 * math.exp(log)

    def feasible(self, k) -> bool:
        return self.starts(k) and not (self.coefficients["int4_loses"] and k["weights"] == "int4")

    def best(self) -> float:
        return max(self.rate(c.knobs) for c in SPACE.enumerate() if self.possible(c) and self.feasible(c.knobs))

    def trial(self, number: int, config: ServingConfig, history: list[Trial], seed: int) -> Trial:
        k = config.knobs
        rng = random.Random(f"{self.number}/{seed}/{number}/{config.digest}")
        load_s = {"bf16": 70.0, "fp8": 45.0, "int4": 35.0}[k["weights"]] * rng.uniform(0.9, 1.1)
        key = (k["weights"], k["max_num_seqs"], k["speculation"])
        seen = {(t.knobs["weights"], t.knobs["max_num_seqs"], t.knobs["speculation"]) for t in history}
        launch_s = load_s + (0.0 if key in seen else 60.0)
        common = {"number": number, "knobs": dict(k), "config_digest": config.digest}
        if not self.starts(k):
            return Trial(
                **common, state="infeasible", score=None, constraints={"engine": 1.0}, seconds=launch_s, failure="oom"
            )
        if not self.feasible(k):
            return Trial(
                **common, state="quality", score=None, constraints={"quality": 0.05}, seconds=launch_s + 20,
                launch_s=launch_s,
            )  # fmt: skip
        rate = self.rate(k) * math.exp(rng.gauss(0.0, self.noise))
        top = max((t.score or 0.0 for t in history if t.feasible), default=0.0)
        raced = rate < 0.6 * top
        score = rate * math.exp(rng.gauss(0.0, 0.12)) if raced else rate
        return Trial(
            **common, state="complete", score=score, constraints={"quality": -0.01, "slo": 0.0}, launch_s=launch_s,
            seconds=launch_s + (15.0 if raced else 90.0),
        )  # fmt: skip


def search(law: ServingLaw, tuner, seed: int, *, wall_clock_s: float, space: SearchSpace = SPACE) -> list[Trial]:
    """The control, which is free, then proposals until the seconds are spent."""
    history: list[Trial] = []
    spent = 0.0
    while spent < wall_clock_s:
        config = tuner.ask(history, law.possible) if history else space.default()
        if config is None:
            break
        history.append(law.trial(len(history), config, history, seed))
        spent += history[-1].seconds if len(history) > 1 else 0.0
    return history


def regret(law: ServingLaw, history: list[Trial], best: float) -> list[tuple[float, float]]:
    """(seconds spent, how far the true rate of the best-scored configuration so far lies below ``best``)."""
    curve, spent = [], 0.0
    for i, trial in enumerate(history):
        spent += trial.seconds if i else 0.0
        feasible = [t for t in history[: i + 1] if t.feasible and t.score]
        chosen = max(feasible, key=lambda t: t.score, default=None)
        curve.append((spent, 1 - law.rate(chosen.knobs) / best if chosen else 1.0))
    return curve
