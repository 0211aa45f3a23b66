"""The exact schedule of requests that a workload and a seed stand for: when, what text, how long.

Knows nothing of servers, HTTP or time passing. The tokenizer is a function that counts.

Common random numbers: arrivals, lengths and content are drawn from independent children of one seed, each
request's in turn. Request i therefore has the same text and lengths, and the same unit-rate arrival, in
every schedule of that seed, whatever its rate and however long it is.
"""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scenarios.spec import Arrivals, Lengths, Workload
from scenarios.words import Words

__all__ = ["Schedule", "ScheduledRequest", "Words", "draw_lengths", "hold", "ramp", "sequence"]

FloatArray = NDArray[np.float64]

PREFIX_SEED = 20240229  # of shared prefixes: the same system prompt whatever the seed of the schedule
GAPS_PER_DRAW = 256


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """``t_int_ns``: intended send time since t0. ``prompt_tokens``: shared prefix included."""

    index: int
    t_int_ns: int
    prompt: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Schedule:
    """``rate_rps``: None where there is no single rate (ramp, sequence)."""

    requests: tuple[ScheduledRequest, ...] = field(repr=False)
    duration_s: float
    rate_rps: float | None
    seed: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that will be sent, and when. 64 hex digits."""
        content = hashlib.sha256()
        for r in self.requests:
            content.update(f"{r.index} {r.t_int_ns} {r.prompt_tokens} {r.output_tokens} {r.prompt}\n".encode())
        return content.hexdigest()


def hold(workload: Workload, words: Words, *, rate_rps: float, duration_s: float, seed: int) -> Schedule:
    """Arrivals at a constant rate, for ``duration_s``. Raises ValueError unless both are > 0."""
    _positive(rate_rps=rate_rps, duration_s=duration_s)
    times_s = _unit_arrivals(workload.arrivals, rate_rps * duration_s, seed) / rate_rps
    return Schedule(_requests(workload, words, times_s, seed), duration_s, rate_rps, seed)


def ramp(
    workload: Workload, words: Words, *, start_rps: float, end_rps: float, duration_s: float, seed: int
) -> Schedule:
    """Arrivals whose rate grows exponentially: rate(t) = start (end/start)^(t/duration).

    The unit-rate process of `hold` on a stretched clock (time-change theorem: arrival u of it falls where the
    integrated rate is u). Raises ValueError unless both rates and the duration are > 0.
    """
    _positive(start_rps=start_rps, end_rps=end_rps, duration_s=duration_s)
    growth_per_s = math.log(end_rps / start_rps) / duration_s
    if growth_per_s == 0:
        times_s = _unit_arrivals(workload.arrivals, start_rps * duration_s, seed) / start_rps
    else:
        expected = (end_rps - start_rps) / growth_per_s
        units = _unit_arrivals(workload.arrivals, expected, seed)
        times_s = np.log1p(growth_per_s * units / start_rps) / growth_per_s
    return Schedule(_requests(workload, words, times_s, seed), duration_s, None, seed)


def sequence(workload: Workload, words: Words, *, n: int, seed: int) -> Schedule:
    """``n`` requests without times: for closed loops, and for probing one by one. Raises ValueError if n < 1."""
    _positive(n=n)
    return Schedule(_requests(workload, words, np.zeros(n), seed), 0.0, None, seed)


def _positive(**quantities: float) -> None:
    for name, value in quantities.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value}")


def _children(seed: int) -> tuple[Generator, Generator, Generator, Generator]:
    """Independent generators of arrivals, prompt lengths, output lengths, content."""
    arrivals, prompts, outputs, content = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    return arrivals, prompts, outputs, content


def _unit_arrivals(arrivals: Arrivals, until: float, seed: int) -> FloatArray:
    """Arrival times below ``until`` of the process at rate 1: shape (n,), increasing.

    `constant` starts half a gap in, so that a duration holds rate x duration arrivals, rounded.
    """
    assert arrivals.process != "closed", "a closed loop has no arrival times: use sequence()"
    if arrivals.process == "constant":
        return np.arange(0.5, until, 1.0)
    rng, *_ = _children(seed)
    times = np.empty(0)
    while times.size == 0 or times[-1] < until:
        reached = times[-1] if times.size else 0.0
        times = np.concatenate([times, reached + np.cumsum(_gaps(arrivals, rng))])
    return times[times < until]


def _gaps(arrivals: Arrivals, rng: Generator) -> FloatArray:
    """The next gaps, of mean 1. A gamma of shape k has coefficient of variation k^-1/2: 1 is exponential."""
    if arrivals.gap_cv is None:
        return rng.exponential(size=GAPS_PER_DRAW)
    shape = arrivals.gap_cv**-2
    return rng.gamma(shape, 1 / shape, size=GAPS_PER_DRAW)


def _requests(workload: Workload, words: Words, times_s: FloatArray, seed: int) -> tuple[ScheduledRequest, ...]:
    """One request for each of ``times_s``, in their order."""
    _, prompt_rng, output_rng, content_rng = _children(seed)
    n = len(times_s)
    prompt_tokens = draw_lengths(workload.prompt_tokens, prompt_rng, n)
    output_tokens = draw_lengths(workload.output_tokens, output_rng, n)
    shared = words.draw(np.random.default_rng(PREFIX_SEED), workload.shared_prefix_tokens)
    return tuple(
        ScheduledRequest(
            index=i,
            t_int_ns=t_ns,
            prompt=shared + words.draw(content_rng, prompt),
            prompt_tokens=workload.shared_prefix_tokens + prompt,
            output_tokens=output,
        )
        for i, (t_ns, prompt, output) in enumerate(
            zip(np.rint(times_s * 1e9).astype(np.int64).tolist(), prompt_tokens, output_tokens, strict=True)
        )
    )


def draw_lengths(lengths: Lengths, rng: Generator, n: int) -> list[int]:
    """``n`` token counts, rounded and clipped to [min, longest]; mean and cv are those before clipping.

    Lognormal: sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2.
    """
    if lengths.distribution == "uniform":
        return [int(x) for x in rng.integers(lengths.min, lengths.longest, size=n, endpoint=True)]
    assert lengths.mean is not None
    z = rng.standard_normal(n)
    cv = lengths.cv or 0.0
    if lengths.distribution == "lognormal":
        sigma2 = math.log1p(cv**2)
        drawn = np.exp(math.log(lengths.mean) - sigma2 / 2 + math.sqrt(sigma2) * z)
    else:
        drawn = lengths.mean * (1 + cv * z)
    return [int(x) for x in np.rint(drawn).clip(lengths.min, lengths.longest)]
