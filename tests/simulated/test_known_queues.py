"""The scheduler set up to be a queue that theory knows: its mean and P95 sojourn must be theory's.

Tokens play the part of service: a request of k tokens takes k steps of constant length, whatever else runs. One seat
makes a single server, eight seats eight of them. Lengths are exponential, cut to whole tokens so small that theory's
values change by 0.1 %, or all equal.
"""

import heapq
import math

import numpy as np
import pytest
from scipy import stats

import queues
from harness.engines.simulated.compiled import IS_COMPILED
from harness.engines.simulated.core import Limits
from harness.engines.simulated.steps import StepLaw
from harness.engines.simulated.virtual import Requests, serve

TOKENS = 500  # of a mean service, which lasts a second
REPLICATIONS = 50
WARMUP, EACH = 1_000, 20_000
ALLOWED = stats.norm.ppf(1 - 1e-3 / 2)  # of the distance, in standard errors: 1 in 1,000 where all is right

needs_numba = pytest.mark.skipif(
    not IS_COMPILED, reason="numba is not installed: a million requests would take an hour"
)


class Servers:
    replicas = 1

    def __init__(self, seats, step_s=1 / TOKENS):
        self.steps = StepLaw(overhead_s=step_s)
        self.limits = Limits(
            max_num_seqs=seats,
            max_num_batched_tokens=10_000,
            blocks=10_000,
            block_tokens=1_000,
            context_tokens=1_000_000,
            chunked_prefill=True,
            prefix_caching=False,
            draft_tokens=0,
        )


def asked(arrivals_s, tokens):
    n = len(tokens)
    return Requests(arrivals_s, np.ones(n, np.int64), tokens, np.full(n, -1), np.zeros(n, np.int64))


def exponential(n, rng):
    """Geometric with mean `TOKENS`: the exponential law of whole tokens."""
    return rng.geometric(1 / TOKENS, n)


def constant(n, rng):
    return np.full(n, TOKENS)


def sojourns(seats, lengths, utilisation, step_s=1 / TOKENS):
    """Mean and P95 of each replication, each begun empty and warmed up: (REPLICATIONS, 2)."""
    found = []
    for rng in queues.generators(1, REPLICATIONS):
        arrivals = queues.poisson(utilisation * seats, WARMUP + EACH, rng)
        served = serve(Servers(seats, step_s), asked(arrivals, lengths(len(arrivals), rng)))
        sojourn = (served.done_s - arrivals)[WARMUP:]
        found.append((sojourn.mean(), np.percentile(sojourn, 95)))
    return np.array(found)


def mmk_mean(utilisation, servers):
    """Unit service: Erlang's C divided by what is left, and the service itself."""
    offered = utilisation * servers
    busy = offered**servers / math.factorial(servers) / (1 - utilisation)
    waits = busy / (busy + sum(offered**i / math.factorial(i) for i in range(servers)))
    return 1 + waits / (servers * (1 - utilisation))


def md1_mean(utilisation):
    return 1 + utilisation / (2 * (1 - utilisation))


def md1_quantile(q, utilisation):
    """Of the sojourn: Erlang's series for the wait of M/D/1 (Erlang 1909), solved by bisection."""

    def waited(t):
        return (1 - utilisation) * math.fsum(
            (utilisation * (k - t)) ** k / math.factorial(k) * math.exp(-utilisation * (k - t))
            for k in range(int(t) + 1)
        )

    low, high = 0.0, 14.0  # beyond, the terms of changing sign cancel too much
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if waited(middle) < q else (low, middle)
    return 1 + low


CASES = {
    "M/M/1": (1, exponential, 0.5, lambda u: (mmk_mean(u, 1), queues.mmk_sojourn_quantile(0.95, u, 1))),
    "M/D/1": (1, constant, 0.6, lambda u: (md1_mean(u), md1_quantile(0.95, u))),
    "M/M/8": (8, exponential, 0.7, lambda u: (mmk_mean(u, 8), queues.mmk_sojourn_quantile(0.95, u, 8))),
}


@needs_numba
@pytest.mark.parametrize("name", CASES)
def test_mean_and_p95_are_those_of_theory(name):
    seats, lengths, utilisation, theory = CASES[name]
    found = sojourns(seats, lengths, utilisation)
    error = found.std(axis=0, ddof=1) / math.sqrt(REPLICATIONS)
    exact = np.array(theory(utilisation))
    assert (np.abs(found.mean(axis=0) - exact) < ALLOWED * error).all()
    assert (error < 0.006 * exact).all()


@needs_numba
@pytest.mark.parametrize("name", CASES)
def test_a_bias_of_two_per_cent_in_the_steps_would_be_seen(name):
    seats, lengths, utilisation, theory = CASES[name]
    found = sojourns(seats, lengths, utilisation, step_s=1.02 / TOKENS)
    error = found.std(axis=0, ddof=1) / math.sqrt(REPLICATIONS)
    assert (np.abs(found.mean(axis=0) - theory(utilisation)) > ALLOWED * error).all()


@pytest.mark.parametrize("name", ["M/M/1", "M/D/1"])
def test_every_single_request_leaves_a_single_server_when_lindley_says(name):
    _, lengths, utilisation, _ = CASES[name]
    rng = np.random.default_rng(3)
    arrivals = queues.poisson(utilisation, 20_000, rng)
    tokens = lengths(len(arrivals), rng)
    served = serve(Servers(1), asked(arrivals, tokens))
    lindley = queues._one_server(arrivals, tokens / TOKENS)
    assert served.done_s == pytest.approx(lindley.done_s, abs=1e-6)


def test_every_request_leaves_eight_servers_within_a_few_steps_of_the_recursion():
    """Who comes between two steps waits for the next one: that is all by which it may differ."""
    rng = np.random.default_rng(4)
    arrivals = queues.poisson(0.7 * 8, 20_000, rng)
    tokens = exponential(len(arrivals), rng)
    free, done = [0.0] * 8, []
    for arrival, took in zip(arrivals.tolist(), (tokens / TOKENS).tolist(), strict=True):
        done.append(max(arrival, free[0]) + took)
        heapq.heapreplace(free, done[-1])
    late = serve(Servers(8), asked(arrivals, tokens)).done_s - done
    assert 0 < late.mean() < 1 / TOKENS
    assert np.mean(np.abs(late) < 3 / TOKENS) > 0.99
