"""Queues whose right answers are known."""

from dataclasses import dataclass
from math import exp, factorial

import numpy as np
import pytest
from scipy.optimize import brentq


@dataclass(frozen=True)
class Queues:
    """Independent M/M/k queues with unit service rate, first come first served. Shapes (runs, n)."""

    arrived: np.ndarray
    completed: np.ndarray

    @property
    def latency(self):
        return self.completed - self.arrived


@pytest.fixture(scope="session")
def queues():
    """Kiefer-Wolfowitz recursion over all runs at once; the queue is empty at time 0."""

    def simulate(*, utilisation, n, runs, servers=1, seed=0):
        rng = np.random.default_rng(seed)
        arrived = np.cumsum(rng.exponential(1 / (utilisation * servers), (n, runs)), axis=0)
        service = rng.exponential(1, (n, runs))
        completed = np.empty_like(arrived)
        free_at = np.zeros((runs, servers))
        for i in range(n):
            completed[i] = np.maximum(arrived[i], free_at[:, 0]) + service[i]
            free_at[:, 0] = completed[i]
            free_at.sort(axis=1)
        return Queues(arrived.T, completed.T)

    return simulate


@pytest.fixture(scope="session")
def sojourn_quantile():
    """The exact quantile of the time in an M/M/k queue with unit service rate (Erlang's C formula)."""

    def quantile(q, *, utilisation, servers=1):
        offered = utilisation * servers
        busy = offered**servers / factorial(servers) / (1 - utilisation)
        waits = busy / (busy + sum(offered**i / factorial(i) for i in range(servers)))
        drain = servers * (1 - utilisation)

        def exceeds(t):
            both = (drain * exp(-t) - exp(-drain * t)) / (drain - 1)
            return (1 - waits) * exp(-t) + waits * both

        return brentq(lambda t: exceeds(t) - (1 - q), 0, 1000)

    return quantile
