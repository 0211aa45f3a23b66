"""Two clients, one server, one schedule: what each says, what the server says, and how far they are apart.

Knows nothing of how they are run (vllm_bench.py).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from harness.observe import column, latencies_ms, output_tokens
from harness.stats.intervals import percentile

FloatArray = npt.NDArray[np.float64]
Row = dict[str, Any]

OURS, THEIRS = "ours", "vllm bench"
AGREE = 0.03
OWN_TPS = "output tokens/s, each by its own definition"
LATENCIES = ("ttft", "tpot", "e2e")
# figure -> what the server says of the same requests
BY_SERVER = {f"{name}_mean_ms": f"{name}_mean_ms" for name in LATENCIES}
FIGURES = (*(f"{name}_{of}_ms" for name in LATENCIES for of in ("mean", "p50", "p95")), "output_tps")


@dataclass(frozen=True)
class Answers:
    """What a client says of the requests of one run, in the schedule's order. Shapes (n,).

    ``late_ms``: sent so long after it was due. ``ttft_ms`` and ``e2e_ms``: since it was sent. ``end_s``: of the answer,
    since the first request was due.
    """

    late_ms: FloatArray
    ttft_ms: FloatArray
    tpot_ms: FloatArray
    e2e_ms: FloatArray
    end_s: FloatArray
    tokens: FloatArray


def theirs(result: Mapping[str, Any], due_s: npt.ArrayLike) -> Answers:
    """Of `vllm bench serve --save-detailed`. It does not say when it meant to begin: its promptest request is taken
    to be on time, so its lateness is told from below."""
    due, sent, ttft, took = (
        np.asarray(x, float) for x in (due_s, *map(result.get, ("start_times", "ttfts", "latencies")))
    )
    late_s = sent - due
    late_s -= late_s.min()
    tokens = np.asarray(result["output_lens"], float)
    return Answers(
        late_s * 1e3, ttft * 1e3, (took - ttft) / (tokens - 1) * 1e3, took * 1e3, due + late_s + took, tokens
    )


def ours(records: pa.Table) -> Answers:
    """Of the load generator's records. Our TTFT and E2E begin when a request was due: here they are taken apart."""
    records = records.sort_by([("t_int_ns", "ascending"), ("index", "ascending")])
    found = latencies_ms(records, {})
    late = found["client_lag"]
    end_s = column(records, "t_last_ns") / 1e9
    return Answers(late, found["ttft_wire"], found["tpot"], found["e2e"] - late, end_s, output_tokens(records))


def figures(answers: Answers, *, since_due: bool) -> dict[str, float]:
    """What the client reports. ``since_due``: latencies begin when the request was due, not when it was sent."""
    late = answers.late_ms if since_due else 0.0
    found = {}
    for name, values in zip(LATENCIES, (answers.ttft_ms + late, answers.tpot_ms, answers.e2e_ms + late), strict=True):
        found[f"{name}_mean_ms"] = float(values.mean())
        found |= {f"{name}_p{q}_ms": percentile(values, q) for q in (50, 95)}
    return {**found, "output_tps": float(answers.tokens.sum() / answers.end_s.max())}


def server(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What vLLM's own histograms say of the requests between two looks at /metrics, in ms."""

    def mean_ms(name: str) -> float:
        total, count = (after[f"{name}_{part}"] - before[f"{name}_{part}"] for part in ("sum", "count"))
        return 1e3 * total / count

    return {
        "requests": after["time_to_first_token_seconds_count"] - before["time_to_first_token_seconds_count"],
        "ttft_mean_ms": mean_ms("time_to_first_token_seconds"),
        "tpot_mean_ms": mean_ms("request_time_per_output_token_seconds"),
        "e2e_mean_ms": mean_ms("e2e_request_latency_seconds"),
        "queue_mean_ms": mean_ms("request_queue_time_seconds"),
        "prompt_tokens": after["prompt_tokens_total"] - before["prompt_tokens_total"],
        "cached_tokens": after["prefix_cache_hits_total"] - before["prefix_cache_hits_total"],
    }


@dataclass(frozen=True)
class Ratio:
    """Of ours to theirs, geometric mean over rounds; ``low``, ``high``: 95 % (Student's t of the logarithms)."""

    value: float
    low: float
    high: float

    @property
    def agree(self) -> bool | None:
        """None: the rounds do not tell."""
        if self.low >= 1 - AGREE and self.high <= 1 + AGREE:
            return True
        return False if self.high < 1 - AGREE or self.low > 1 + AGREE else None


def rounds(runs: Iterable[Row]) -> list[list[Row]]:
    """The three runs of each round, in order: one client between two runs of the other."""
    found: dict[int, list[Row]] = {}
    for run in sorted(runs, key=lambda r: (r["round"], r["place"])):
        found.setdefault(run["round"], []).append(run)
    return [run for run in found.values() if len(run) == 3]


def ratio(runs: Iterable[Row], *path: str) -> Ratio:
    """Of the figure at ``path``. A steady drift of the machine falls out: the one in the middle is held against the
    mean of those around it."""
    logs = []
    for first, middle, last in rounds(runs):
        a, b, c = (math.log(_at(run, path)) for run in (first, middle, last))
        logs.append(b - (a + c) / 2 if middle["client"] == OURS else (a + c) / 2 - b)
    return _interval(logs)


def beside_server(runs: Sequence[Row], figure: str) -> Ratio:
    """Ours to theirs, each divided by what the server said of the same requests: what the clients disagree in."""
    scaled = [{**r, "scaled": r["client_says"][figure] / r["server_says"][BY_SERVER[figure]]} for r in runs]
    return ratio(scaled, "scaled")


def same_client(runs: Iterable[Row], *path: str) -> float:
    """How far two runs of one client on one schedule are apart: root mean square of log(last / first), as a ratio."""
    logs = [math.log(_at(last, path) / _at(first, path)) for first, _, last in rounds(runs)]
    return math.exp(math.sqrt(float(np.mean(np.square(logs))))) - 1


def _interval(logs: Sequence[float]) -> Ratio:
    mean, n = float(np.mean(logs)), len(logs)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(logs, ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return Ratio(*(math.exp(min(x, 700.0)) for x in (mean, mean - half, mean + half)))


def _at(run: Row, path: Sequence[str]) -> float:
    found: Any = run
    for key in path:
        found = found[key]
    return float(found)


def of_client(runs: Iterable[Row], client: str, *path: str) -> float:
    """Mean over rounds, of the mean of the client's runs in each: rounds differ, and each client has had them all."""
    of_rounds = [[_at(run, path) for run in three if run["client"] == client] for three in rounds(runs)]
    return float(np.mean([np.mean(values) for values in of_rounds]))


def page(found: Mapping[str, Any]) -> str:
    about = found["setting"]
    intro = (
        f"`make bench-vllm` on {found['machine']}, {found['measured_at']}: {found['engine']}, {about['model']}, "
        f"{about['prompt_tokens']} tokens in, {about['output_tokens']} out. It holds {about['capacity_rps']:.2f} "
        f"requests/s ({about['lanes']} at a time). {len(found['runs'])} runs; in each round one client runs between "
        "two runs of the other, all three at the times of one file that both read. Ratios are ours / theirs, with the "
        "95 % interval over rounds; *within 3 %*: where the whole interval is (yes) or is not (no); *same client*: how "
        "far two runs of one client in a round are apart (root mean square). What it means: docs/load-benchmark.md."
    )
    if under := about.get("theirs_under"):
        intro += f" `vllm bench serve` ran under `{under}`, the priority that our load child has (`--realtime`)."
    lines = ["# `vllm bench serve` and this project's harness on one running vLLM, at the same times", "", intro]
    for load in dict.fromkeys(run["load"] for run in found["runs"]):
        lines += ["", *_section(load, [run for run in found["runs"] if run["load"] == load])]
    return "\n".join(lines) + "\n"


def _section(load: str, runs: Sequence[Row]) -> list[str]:
    rate_rps, n = runs[0]["rate_rps"], runs[0]["requests"]
    lines = [
        f"## {load.capitalize()} load: {rate_rps:.2f} requests/s, {n} requests a run, {len(rounds(runs))} rounds",
        "",
        "| reported | ours | `vllm bench serve` | ratio | within 3 % | same client |",
        "|---|---|---|---|---|---|",
    ]
    for name, *path in [*((_name(f), "client_says", f) for f in FIGURES), (OWN_TPS, "own_output_tps")]:
        told, noise = ratio(runs, *path), same_client(runs, *path)
        a, b = (of_client(runs, client, *path) for client in (OURS, THEIRS))
        lines.append(f"| {name} | {a:.2f} | {b:.2f} | {_ratio(told)} | {_agree(told)} | {noise:.1%} |")
    lines += [
        "",
        "| mean | server, in our runs | ours | server, in theirs | theirs | ratio, each by its server | within 3 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for figure, known in BY_SERVER.items():
        cells = [
            f"{of_client(runs, client, 'server_says', known):.2f} | {_more(runs, client, figure, known)}"
            for client in (OURS, THEIRS)
        ]
        told = beside_server(runs, figure)
        lines.append(f"| {_name(figure)} | {' | '.join(cells)} | {_ratio(told)} | {_agree(told)} |")
    lines += ["", "| of the client | ours | `vllm bench serve` |", "|---|---|---|"]
    facts: dict[str, tuple[str, ...]] = {
        "sent after it was due, P50, ms": ("late_p50_ms",),
        "sent after it was due, P99, ms": ("late_p99_ms",),
        "mean of that: part of our TTFT, not of theirs, ms": ("late_mean_ms",),
        "CPU while it sends, ms a request": ("cpu_ms_per_request",),
        "CPU of everything, start and evaluation too, s a run": ("cpu_total_s",),
        "prompt tokens found in the prefix cache, a run": ("server_says", "cached_tokens"),
    }
    for name, place in facts.items():
        lines.append(f"| {name} | {' | '.join(f'{of_client(runs, c, *place):.3g}' for c in (OURS, THEIRS))} |")
    own = [run for run in runs if run["client"] == OURS]
    void = [reason for run in own for reason in run["void"]]
    return [*lines, "", f"Of our {len(own)} runs, {len(void)} would be repeated in a study{_listed(void)}."]


def _listed(reasons: Sequence[str]) -> str:
    return f", and are kept here: {'; '.join(reasons)}" if reasons else ""


def _more(runs: Sequence[Row], client: str, figure: str, known: str) -> str:
    return f"{of_client(runs, client, 'client_says', figure) - of_client(runs, client, 'server_says', known):+.2f}"


def _name(figure: str) -> str:
    if figure == "output_tps":
        return "output tokens/s"
    latency, of, _ = figure.split("_")
    return f"{latency.upper()} {of.replace('p', 'P')}, ms"


def _ratio(told: Ratio) -> str:
    return f"{told.value:.3f} ({told.low:.3f} – {told.high:.3f})"


def _agree(told: Ratio) -> str:
    return {True: "yes", False: "no", None: "too noisy to tell"}[told.agree]
