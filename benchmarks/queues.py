"""Queues whose truth is known: what the statistics are tried on before they are trusted with an engine.

Each law serves a given sequence of arrival times, so that a hold, a ramp or a trace can be played on it. Knows
nothing of verdicts or searches. Times are seconds; all requests are answered in the order in which they came.
"""

import heapq
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Floats = NDArray[np.float64]
Metric = Literal["ttft", "tpot"]

TRUTHS = Path(__file__).parent / "results" / "truths.json"
REPLICATIONS = 32  # independent runs of one truth: their spread is its standard error
WARMUP = 5_000  # requests of each that are thrown away: the queue starts empty


@dataclass(frozen=True, slots=True)
class Served:
    """What became of each request, in order of arrival."""

    ttft_s: Floats  # from arrival to the first (or only) answer
    done_s: Floats  # on the clock of the arrivals
    in_flight: NDArray[np.int64]  # requests in the system as it arrived, itself not counted
    tpot_s: Floats | None = None  # per output token after the first; NaN where there is only one

    def latency_s(self, metric: Metric) -> Floats:
        if metric == "ttft":
            return self.ttft_s
        assert self.tpot_s is not None
        return self.tpot_s


class Law(Protocol):
    """A server. Equal arrivals and equally seeded generators give equal answers."""

    @property
    def name(self) -> str: ...

    @property
    def max_rps(self) -> float:
        """The rate at which the queue grows without end; utilisation is rate / max_rps."""

    def serve(self, arrivals_s: Floats, rng: np.random.Generator) -> Served: ...


def poisson(rate_rps: float, n: int, rng: np.random.Generator) -> Floats:
    """``n`` arrival times of a Poisson process."""
    return np.cumsum(rng.exponential(1 / rate_rps, n))


def ramp(start_rps: float, end_rps: float, seconds: float, rng: np.random.Generator) -> Floats:
    """Arrival times of a Poisson process whose rate grows exponentially from 0 to ``seconds``."""
    growth = math.log(end_rps / start_rps) / seconds
    most = (end_rps - start_rps) / growth
    unit = np.cumsum(rng.exponential(1.0, int(most + 8 * math.sqrt(most) + 8)))
    times = np.log1p(growth * unit / start_rps) / growth
    return times[times < seconds]


def found_on_arrival(arrivals_s: Floats, done_s: Floats) -> NDArray[np.int64]:
    """Requests that came earlier and were not done: what each arrival found in the system."""
    left = np.searchsorted(np.sort(done_s), arrivals_s, side="right")
    return np.arange(len(arrivals_s)) - np.minimum(left, np.arange(len(arrivals_s)))


def _one_server(arrivals_s: Floats, service_s: Floats) -> Served:
    """Lindley's recursion done_i = max(arrival_i, done_(i-1)) + service_i, solved by a cumulative maximum."""
    busy = np.cumsum(service_s)
    done = busy + np.maximum.accumulate(arrivals_s - (busy - service_s))
    return Served(done - arrivals_s, done, found_on_arrival(arrivals_s, done))


@dataclass(frozen=True, slots=True)
class MMk:
    """Exponential service of mean ``service_s`` on each of ``servers``."""

    servers: int = 1
    service_s: float = 1.0

    @property
    def name(self) -> str:
        return f"M/M/{self.servers}"

    @property
    def max_rps(self) -> float:
        return self.servers / self.service_s

    def serve(self, arrivals_s: Floats, rng: np.random.Generator) -> Served:
        service = rng.exponential(self.service_s, len(arrivals_s))
        if self.servers == 1:
            return _one_server(arrivals_s, service)
        free = [0.0] * self.servers
        done = np.empty(len(arrivals_s))
        for i, (arrival, took) in enumerate(zip(arrivals_s.tolist(), service.tolist(), strict=True)):
            done[i] = max(arrival, free[0]) + took
            heapq.heapreplace(free, done[i])
        return Served(done - arrivals_s, done, found_on_arrival(arrivals_s, done))


@dataclass(frozen=True, slots=True)
class MD1:
    """One server, every service as long as every other."""

    service_s: float = 1.0

    @property
    def name(self) -> str:
        return "M/D/1"

    @property
    def max_rps(self) -> float:
        return 1 / self.service_s

    def serve(self, arrivals_s: Floats, rng: np.random.Generator) -> Served:
        del rng
        return _one_server(arrivals_s, np.full(len(arrivals_s), self.service_s))


@dataclass(frozen=True, slots=True)
class Batch:
    """Takes all that wait, up to ``most``, and serves them at once in (base + each * size) * noise.

    The noise is gamma with mean 1 and coefficient of variation ``cv``. An idle server starts on the first arrival.
    """

    most: int = 8
    base_s: float = 0.5
    each_s: float = 0.0625
    cv: float = 0.2

    @property
    def name(self) -> str:
        return f"batch/{self.most}"

    @property
    def max_rps(self) -> float:
        return self.most / (self.base_s + self.each_s * self.most)

    def serve(self, arrivals_s: Floats, rng: np.random.Generator) -> Served:
        n = len(arrivals_s)
        arrivals = arrivals_s.tolist()
        noise = rng.gamma(1 / self.cv**2, self.cv**2, n).tolist()
        done = np.empty(n)
        now, first, batches = 0.0, 0, 0
        while first < n:
            now = max(now, arrivals[first])
            end = min(bisect_right(arrivals, now, first), first + self.most)
            now += (self.base_s + self.each_s * (end - first)) * noise[batches]
            done[first:end] = now
            first, batches = end, batches + 1
        return Served(done - arrivals_s, done, found_on_arrival(arrivals_s, done))


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A small continuous-batching engine: one iteration gives every running sequence one token.

    An iteration lasts step_s + decode_s * running + prefill_s * prompt tokens admitted in it. Waiting requests are
    admitted first come first served, while fewer than ``most_running`` run and their prompts fit ``most_prefill``
    tokens; one that is longer goes alone. Lengths are lognormal with the given means and coefficient of variation.
    """

    most_running: int = 16
    step_s: float = 0.010
    decode_s: float = 0.001
    prefill_s: float = 0.00005
    prompt_tokens: float = 512
    output_tokens: float = 64
    cv: float = 0.6
    most_prefill: int = 2048

    @property
    def name(self) -> str:
        return f"scheduler/{self.most_running}"

    @property
    def max_rps(self) -> float:
        """With all places taken, each request costs its tokens' share of full iterations, and its prompt."""
        per_token = self.step_s / self.most_running + self.decode_s
        return 1 / (self.output_tokens * per_token + self.prompt_tokens * self.prefill_s)

    def serve(self, arrivals_s: Floats, rng: np.random.Generator) -> Served:
        """Jumps from one admission or end to the next: iterations between them are alike."""
        n = len(arrivals_s)
        prompts = _lengths(self.prompt_tokens, self.cv, n, rng).tolist()
        outputs = _lengths(self.output_tokens, self.cv, n, rng)
        arrivals, lengths = arrivals_s.tolist(), outputs.tolist()
        first_s, last_s = np.empty(n), np.empty(n)
        ends: list[tuple[int, int]] = []  # (iteration of the last token, request)
        now, iteration, waiting = 0.0, 0, 0
        while ends or waiting < n:
            if not ends:
                now = max(now, arrivals[waiting])
            running, tokens, begun = len(ends), 0, waiting
            while (
                waiting < n
                and arrivals[waiting] <= now
                and len(ends) < self.most_running
                and (waiting == begun or tokens + prompts[waiting] <= self.most_prefill)
            ):
                tokens += prompts[waiting]
                heapq.heappush(ends, (iteration + lengths[waiting], waiting))
                waiting += 1
            step = self.step_s + self.decode_s * running + self.prefill_s * tokens
            steps = 1
            if waiting == begun:
                steps = ends[0][0] - iteration
                if waiting < n and running < self.most_running:
                    steps = max(1, min(steps, math.ceil((arrivals[waiting] - now) / step)))
            now += steps * step
            iteration += steps
            first_s[begun:waiting] = now
            while ends and ends[0][0] == iteration:
                last_s[heapq.heappop(ends)[1]] = now
        with np.errstate(invalid="ignore"):
            tpot = np.where(outputs > 1, (last_s - first_s) / np.maximum(outputs - 1, 1), np.nan)
        return Served(first_s - arrivals_s, last_s, found_on_arrival(arrivals_s, last_s), tpot)


def _lengths(mean: float, cv: float, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    spread = math.sqrt(math.log1p(cv**2))
    drawn = rng.lognormal(math.log(mean) - spread**2 / 2, spread, n)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


# -- what is true of them --------------------------------------------------------------------------------


class Truth(NamedTuple):
    value: float
    standard_error: float


def truth(law: Law, rate_rps: float, percentile: float = 95, metric: Metric = "ttft", n: int = 1_000_000) -> Truth:
    """The percentile of a latency in steady state under Poisson arrivals, in seconds.

    Exact for M/M/k; otherwise from a simulation of ``n`` requests whose result is kept in ``TRUTHS``.
    """
    if isinstance(law, MMk):
        utilisation = rate_rps / law.max_rps
        return Truth(law.service_s * mmk_sojourn_quantile(percentile / 100, utilisation, law.servers), 0.0)
    key = f"{law!r} rate={rate_rps:.9g} p{percentile:g} {metric} n={n}"
    return _kept(key, lambda: simulated(law, rate_rps, percentile, metric, n))


def simulated(law: Law, rate_rps: float, percentile: float, metric: Metric, n: int) -> Truth:
    """Mean and standard error over independent replications, each begun empty and warmed up."""
    each = max(n // REPLICATIONS, WARMUP)
    found: list[float] = []
    for rng in generators(1, REPLICATIONS):
        served = law.serve(poisson(rate_rps, WARMUP + each, rng), rng)
        found.append(float(np.nanpercentile(served.latency_s(metric)[WARMUP:], percentile)))
    return _mean(found)


def generators(seed: int, n: int) -> Iterator[np.random.Generator]:
    """Independent generators of one seed."""
    for child in np.random.SeedSequence(seed).spawn(n):
        yield np.random.default_rng(child)


def mmk_sojourn_quantile(q: float, utilisation: float, servers: int = 1) -> float:
    """The exact quantile of the time in an M/M/k queue with unit service rate (Erlang's C formula)."""
    offered = utilisation * servers
    busy = offered**servers / math.factorial(servers) / (1 - utilisation)
    waits = busy / (busy + sum(offered**i / math.factorial(i) for i in range(servers)))
    drain = servers * (1 - utilisation)

    def exceeds(t: float) -> float:
        if abs(drain - 1) < 1e-9:
            both = (1 + t) * math.exp(-t)
        else:
            both = (drain * math.exp(-t) - math.exp(-drain * t)) / (drain - 1)
        return (1 - waits) * math.exp(-t) + waits * both

    return float(brentq(lambda t: exceeds(t) - (1 - q), 0, 1000 / (1 - utilisation)))


def idle_latency_s(law: Law, percentile: float = 95) -> float:
    """The percentile of a request's latency on a server that has nothing else to do."""
    if isinstance(law, MMk):
        return -law.service_s * math.log1p(-percentile / 100)
    rng = np.random.default_rng(0)
    return float(np.percentile(law.serve(np.arange(20_000, dtype=np.float64) * 1e4, rng).ttft_s, percentile))


def capacity_rps(law: Law, target_s: float, percentile: float = 95, n: int = 1_000_000) -> Truth:
    """The rate of Poisson arrivals at which the percentile of TTFT is ``target_s``.

    Exact for M/M/k; otherwise the mean over replications of ``n`` requests in all, each solved with its own common
    random numbers, and kept in ``TRUTHS``.
    """
    if isinstance(law, MMk):
        wanted = target_s / law.service_s
        found = brentq(lambda u: mmk_sojourn_quantile(percentile / 100, u, law.servers) - wanted, 1e-6, 1 - 1e-6)
        return Truth(float(found) * law.max_rps, 0.0)
    return _kept(
        f"{law!r} capacity p{percentile:g} target={target_s:.6g} n={n}",
        lambda: _mean([_solved(law, target_s, percentile, n // REPLICATIONS, seed) for seed in range(REPLICATIONS)]),
    )


def _solved(law: Law, target_s: float, percentile: float, n: int, seed: int) -> float:
    gaps = np.random.default_rng([seed, 1]).exponential(1.0, WARMUP + n)

    def excess(utilisation: float) -> float:
        served = law.serve(np.cumsum(gaps / (utilisation * law.max_rps)), np.random.default_rng([seed, 2]))
        return math.log(np.percentile(served.ttft_s[WARMUP:], percentile) / target_s)

    return law.max_rps * float(brentq(excess, 0.02, 1.2, xtol=5e-4))


def _mean(values: list[float]) -> Truth:
    return Truth(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))))


def _kept(key: str, find: Callable[[], Truth]) -> Truth:
    """``find``'s result, from ``TRUTHS`` if it is there."""
    kept = json.loads(TRUTHS.read_text(encoding="utf-8")) if TRUTHS.exists() else {}
    if key not in kept:
        kept[key] = [float(f"{x:.6g}") for x in find()]
        with suppress(OSError):  # a truth that cannot be kept is only slow
            TRUTHS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
    return Truth(*kept[key])
