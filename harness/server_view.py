"""The engine's own figures of a run, beside the client's: queue, cache, drafts, latency, and where the two disagree.

What a server calls its figures is in its `ServerNames` (engines/base.py). Knows nothing of targets.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.engines.base import ServerNames
from harness.measurement import ServerView
from harness.observe import column, output_tokens

Figures = Mapping[str, float]

SAMPLE_EVERY_S = 2.0  # on average
FEWEST = 20  # requests behind a mean that is compared
FLOOR_MS = 3.0  # what HTTP, JSON and a loopback take of a request, together
SHARE = 0.05  # of the server's mean
MS = 1e3
NS_PER_MS = 1e6


class Sampler:
    """Asks the server while a run goes on, from a thread of its own: a server that hangs holds up nobody.

    At uneven times: at even ones it would meet requests that come evenly always at the same point of their answers.
    """

    def __init__(self, ask: Callable[[], Figures]) -> None:
        self.seen: list[Figures] = []
        self._ask = ask
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """At once: a question that is still open is nobody's concern any more."""
        self._over.set()

    def _sample(self) -> None:
        uneven = np.random.default_rng(0)
        while not self._over.wait(SAMPLE_EVERY_S * uneven.uniform(0.5, 1.5)):
            if figures := self._ask():
                self.seen.append(figures)


def server_view(
    names: ServerNames, before: Figures, after: Figures, sampled: list[Figures], records: pa.Table, *, stream: bool
) -> ServerView:
    """``records``: every request of the run, warm-up included, as the server has counted every one of them."""

    def grown(name: str | None) -> float | None:
        return None if name is None or name not in after else after[name] - before.get(name, 0.0)

    def share(part: str | None, whole: str | None) -> float | None:
        of, total = grown(part), grown(whole)
        return of / total if of is not None and total else None

    def mean_ms(histogram: str | None) -> float | None:
        seconds = share(f"{histogram}_sum", f"{histogram}_count") if histogram else None
        return None if seconds is None else seconds * MS

    def seen(name: str | None) -> list[float]:
        return [figures[name] for figures in sampled if name in figures] if name else []

    answered = records.filter(pc.is_null(records["error"]))
    told = ServerView(
        requests=_whole(grown(names.e2e and f"{names.e2e}_count")),
        ttft_mean_ms=mean_ms(names.ttft),
        tpot_mean_ms=mean_ms(names.tpot),
        e2e_mean_ms=mean_ms(names.e2e),
        client_requests=answered.num_rows,
        **_client_means_ms(answered, stream=stream),
        samples=len(sampled),
        running_mean=_mean(seen(names.running)),
        running_peak=max(seen(names.running), default=None),
        waiting_mean=_mean(seen(names.waiting)),
        waiting_peak=max(seen(names.waiting), default=None),
        kv_usage_peak=max(seen(names.kv_usage), default=None),
        preemptions=_whole(grown(names.preemptions)),
        prefix_hit_share=share(names.prefix_hits, names.prefix_queries),
        accepted_share=share(names.accepted, names.drafted),
    )
    # Aborted requests are in some of the server's figures and not in others.
    comparable = answered.num_rows == records.num_rows and answered.num_rows >= FEWEST
    return told.model_copy(update={"disagreements": tuple(_disagreements(told))}) if comparable else told


def _client_means_ms(answered: pa.Table, *, stream: bool) -> dict[str, float | None]:
    """From the last byte sent, as a server can know it."""
    sent, first, last = (column(answered, name) for name in ("t_send_ns", "t_first_ns", "t_last_ns"))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {"e2e": last - sent}
        if stream:
            tokens = output_tokens(answered)
            found |= {"ttft": first - sent, "tpot": np.where(tokens >= 2, (last - first) / (tokens - 1), np.nan)}
    return {
        f"client_{name}_mean_ms": _mean((found[name][np.isfinite(found[name])] / NS_PER_MS).tolist())
        if name in found
        else None
        for name in ("ttft", "tpot", "e2e")
    }


def _disagreements(told: ServerView) -> Iterator[str]:
    if told.requests is None:
        return
    if told.requests != told.client_requests:
        yield (
            f"the server finished {told.requests} requests, {told.client_requests} were ours: others use it, "
            "so its figures are not of this run alone"
        )
        return
    pairs = {
        "TTFT": (told.ttft_mean_ms, told.client_ttft_mean_ms),
        "end to end": (told.e2e_mean_ms, told.client_e2e_mean_ms),
    }
    for name, (server, client) in pairs.items():
        if server is None or client is None:
            continue
        allowed = max(FLOOR_MS, SHARE * server)
        if abs(client - server) > allowed:
            where = "between them: its HTTP front end, or the network" if client > server else "in its own clock"
            yield (
                f"{name}, mean: the client saw {client:.1f} ms, the server {server:.1f} ms; "
                f"{abs(client - server):.1f} ms were spent {where} ({allowed:.1f} ms are usual)"
            )


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _whole(count: float | None) -> int | None:
    return None if count is None else round(count)
