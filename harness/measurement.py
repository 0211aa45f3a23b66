"""The types a measurement is told in. Frozen, read from and written to JSON; no opinions, no formulas.

Made by observe.py (Measurement) and judge.py (Verdict).
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Record):
    """A number with its interval. ``low``/``high`` None: too few requests to say, or it falls on failures.

    ``value`` None: a percentile that falls on a failed request, so there is no such number of milliseconds.
    """

    value: float | None
    low: float | None
    high: float | None
    confidence: float = 0.95
    n: int
    n_effective: float


class SloCount(Record):
    """How often one target was missed among the judged requests, in order of intended send time."""

    metric: str
    percentile: float
    target_ms: float
    misses: int
    n: int
    autocorrelation_time: float  # tau of log latency, in requests, Sokal window
    deflation: float  # d = max(2, 2 tau): its percentile has the interval of n / d independent requests


class HostReading(Record):
    """What went on beside the engine while it was measured. None: this machine does not tell."""

    steal_share: float | None = None  # of the machine's CPU time: taken by the hypervisor
    foreign_cpu_share: float | None = None  # of the machine's CPU time: processes neither ours nor the engine's
    engine_wait_share: float | None = None  # of the time its threads could run: they had no core
    engine_wait_us: float | None = None  # mean, of every time that one of them was given a core
    client_wait_share: float | None = None  # of the time: the load generator could run, but had no core
    cpu_stalled_share: float | None = None  # of the time: some process, ours or not, waited for a core
    memory_stalled_share: float | None = None  # of the time: everything waited for memory
    io_stalled_share: float | None = None  # of the time: everything waited for a disk
    throttled_share: float | None = None  # of our cores' time: kept from running by a CPU quota
    thermal_throttled_share: float | None = None  # of the time, on the worst core
    swapped_bytes_per_s: float | None = None  # in and out
    gpu_neighbours: int | None = None  # processes of others on the engine's GPUs
    gpu_slowed: bool | None = None  # by heat or power, at the begin or the end
    clock_step_ms: float | None = None  # the wall clock was set by so much
    suspended_ms: float | None = None
    clocksources: tuple[str, ...] = ()  # at the begin and the end; two: the kernel gave up the first


class Audit(HostReading):
    """Was the load what was asked for? ``void_reasons`` non-empty: it was not, and not by the engine's doing."""

    offered_rps: float | None  # None: closed loop
    achieved_rps: float  # requests really sent per second of schedule
    send_lateness_p50_ms: float
    send_lateness_p99_ms: float
    send_lateness_limit_ms: float
    loop_lag_p99_ms: float
    receive_lag_p99_ms: float | None = None  # from the kernel's receipt of bytes to our stamp; None: not told
    generator_cpu_share: float
    connections_opened: int
    stale_connections_replaced: int
    scheduling: str | None = None  # what the load generator was granted (load/priority.py)
    void_reasons: tuple[str, ...] = ()
    limited_by: Literal["client", "host"] | None = None  # whose doing it was; None: not void
    advice: str = ""  # what to do about it


class GpuReading(Record):
    """The GPUs that the engine is on, all together, while it was measured. None: not told."""

    gpus: int
    energy_j: float | None
    energy_per_output_token_j: float | None = None
    power_mean_w: float | None
    memory_peak_bytes: int | None
    utilisation_mean: float | None  # share of the time that some kernel ran
    sm_clock_mean_mhz: float | None
    sm_clock_min_mhz: float | None
    held_back_by: tuple[str, ...] = ()  # what kept the clocks below their highest, at any look
    slowed: bool | None = None  # by heat or a power brake
    neighbours: int = 0  # processes of others that were seen on them

    def beside(self, host: HostReading) -> HostReading:
        """``host``, which looked at the GPUs at the begin and the end alone, with what was seen in between."""
        told = [slowed for slowed in (host.gpu_slowed, self.slowed) if slowed is not None]
        neighbours = max(host.gpu_neighbours or 0, self.neighbours)
        return host.model_copy(update={"gpu_slowed": any(told) if told else None, "gpu_neighbours": neighbours})

    def per_token(self, output_tokens: float) -> "GpuReading":
        joule = self.energy_j / output_tokens if self.energy_j is not None and output_tokens > 0 else None
        return self.model_copy(update={"energy_per_output_token_j": joule})


class Telemetry(Record):
    """The engine's process tree while it was measured. None: not observable (attached)."""

    rss_peak_bytes: int | None = None
    cpu_share: float | None = None  # of one core
    engine_metrics: dict[str, float] = {}  # growth of the counters of the engine's own /metrics
    gpu: GpuReading | None = None  # None: the engine is on none, or NVML does not tell


class ServerView(Record):
    """What the engine's own /metrics say of a run, and the client of the same requests. None: it does not tell.

    Means over every request of the run, warm-up included; the client's from the last byte that it sent.
    """

    requests: int | None
    ttft_mean_ms: float | None
    tpot_mean_ms: float | None
    e2e_mean_ms: float | None
    client_requests: int  # answered
    client_ttft_mean_ms: float | None
    client_tpot_mean_ms: float | None
    client_e2e_mean_ms: float | None
    samples: int  # how often it was asked while the run went on
    running_mean: float | None
    running_peak: float | None
    waiting_mean: float | None
    waiting_peak: float | None
    kv_usage_peak: float | None  # share of the KV cache
    preemptions: int | None
    prefix_hit_share: float | None  # of the prompt tokens that were looked up
    accepted_share: float | None  # of the drafted tokens
    disagreements: tuple[str, ...] = ()  # where server and client differ by more than lies between them


RunKind = Literal["unloaded", "ramp", "hold"]


class Measurement(Record):
    """One run of load against one running engine, summarised from its raw records."""

    kind: RunKind
    rate_rps: float | None  # asked; None: closed loop or ramp
    seed: int
    workload_digest: str
    started_at: str  # ISO 8601 UTC
    window_s: tuple[float, float]  # judged part of the schedule, seconds since t0
    steady: bool  # completions kept up with arrivals, no trend in flight
    saturated: bool
    completions_per_arrival: float | None = None  # in the window, once the engine was full; None: too little came then
    n_sent: int
    n_judged: int
    errors: dict[str, int]
    metrics: dict[str, Estimate]  # e.g. ttft_p95_ms, tpot_p95_ms, e2e_p95_ms, ttft_wire_p95_ms, icg_p95_ms
    throughput_rps: float  # completions in the window / its length
    throughput_output_tps: float
    goodput_rps: float  # requests meeting every SLO / window
    slo: tuple[SloCount, ...]
    audit: Audit
    telemetry: Telemetry
    records_path: str  # Parquet, relative to the run folder
    command: str  # the command that repeats it
    percentile_method: str
    server: ServerView | None = None  # None: the engine's own figures are not known to us
    tokens_from_chunks: int = 0  # judged answers whose server did not say completion_tokens: chunks were counted

    def save(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


Outcome = Literal["PASS", "FAIL", "UNDECIDED", "VOID"]


class EvidencePoint(Record):
    """One look at the accumulating evidence (for the e-value traces of the report)."""

    n: int
    misses: int
    log_e_pass: float
    log_e_fail: float


class SloVerdict(Record):
    metric: str
    percentile: float
    target_ms: float
    outcome: Outcome
    log_e_pass: float
    log_e_fail: float
    n: int
    misses: int
    deflation: float  # of E_fail where it decided, else of E_pass
    requests_to_decide: int | None  # estimate of how many more, at this miss rate; None: decided or hopeless
    trace: tuple[EvidencePoint, ...] = ()


class Verdict(Record):
    outcome: Outcome
    reasons: tuple[str, ...]
    slo: tuple[SloVerdict, ...]


class TaskScore(Record):
    """One configuration on one task. ``correct``: per item, in the order of ``item_ids``."""

    task: str
    task_digest: str
    item_ids: tuple[str, ...]
    correct: tuple[bool, ...]
    answers: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct)


class QualityComparison(Record):
    """Paired, against the reference on the same items."""

    task: str
    n: int
    accuracy: float
    reference_accuracy: float
    difference: float  # accuracy - reference accuracy
    difference_low: float  # lower confidence bound at 1 - alpha
    difference_high: float
    lost: int  # reference right, this one wrong
    won: int
    margin: float
    passed: bool
    mcnemar_p: float | None = None  # exact two-sided p-value that losses and wins are equally likely


class QualityVerdict(Record):
    """``level``: how far the cascade went. ``agreement``: share of greedy tokens equal to the reference's."""

    level: Literal["agreement", "screen", "full"]
    passed: bool
    agreement: float | None
    tasks: tuple[QualityComparison, ...]
    violation: float  # graded, <= 0 when passed: max over tasks of (-margin - difference_low) or similar
    reasons: tuple[str, ...] = ()


class Host(Record):
    """Fingerprint of the machine, as far as it shifts numbers."""

    hostname_hash: str
    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]
    kernel: str
    governor: str | None
    python: str
    autotune_version: str
    packages: dict[str, str]


class EngineIdentity(Record):
    """What was measured: enough to start the same thing again."""

    engine: str
    version: str
    argv: tuple[str, ...]
    env: dict[str, str]
    model: str
    model_digest: str | None
    config_digest: str
    simulated: bool = False  # a stated law, no hardware
    dummy_weights: bool = False  # random ones: the speed is real, every answer is noise


def dump(record: BaseModel) -> dict[str, Any]:
    return record.model_dump(mode="json")
