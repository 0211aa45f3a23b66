"""What a study finds out, as it is written to the ledger. Types only.

Step in the ledger                       its result
`study`                                  StudyStart
`transfer`                               Transferred   what earlier studies give to try first, if asked for
`reference`                              Reference     unloaded latency, resolved targets, reference answers
`trial/000` (the control), `trial/001` … TrialResult
`control/NNN`                            TrialResult   of the control arm, numbered on from the trials
`finals/B/T`  block B, trial T           FinalsRun     re-measured on held-out seeds, interleaved
`quality/T`                              QualityVerdict of a finalist on the full tasks
`certify/T/K` attempt K at a lower rate  Certification
`winner`                                 Winner        also written to winner.json
`tracked/NAME`                           {"ok": bool, "message": str}    one per tracker (mlflow, wandb)
"""

from typing import Any, Literal

from harness.measurement import EngineIdentity, Estimate, Host, Measurement, QualityVerdict, Record, Verdict
from tuners.base import Trial

ARM = "control arm"  # `TrialResult.origin` of what it tried
PRESET = "preset "  # `TrialResult.origin` of a preset begins so, its name follows


class Probe(Record):
    """One look at one rate, on the way to a capacity. ``load``, ``misses``: of the worst SLO.

    ``load`` is its latency percentile / target.
    """

    kind: Literal["ramp", "hold"]
    rate_rps: float
    n: int
    misses: int
    load: float | None
    passed: bool
    tolerated: float = 0.05  # share of misses that the worst SLO allows
    load_se: float | None = None  # standard error of log(load)
    deflation: float = 2.0  # so many requests are worth one independent one
    limit_rps: float | None = None  # completions/s of a hold that kept the engine saturated …
    limit_n: int = 0  # … and how many completions that is


class Capacity(Record):
    """The highest rate that still meets every SLO, as estimated on one running engine (search-grade)."""

    rate_rps: float  # 0.0: none of the rates tried held
    highest_passed_rps: float | None  # of the holds at or below the capacity
    lowest_failed_rps: float | None  # of the holds at or above it
    raced: bool  # ended early because it could not beat the best so far
    probes: tuple[Probe, ...]
    rate_low_rps: float | None = None  # the capacity lies between these with probability 0.9; None: not told
    rate_high_rps: float | None = None
    return_ratio: float | None = None  # load at one rate after overload / before; None: no return was made
    return_ratio_se: float | None = None  # standard error of its logarithm


class StudyStart(Record):
    scenario: dict[str, Any]  # as asked, all defaults resolved
    scenario_digest: str
    scenario_file: str
    command: str
    started_at: str
    host: Host
    engine_version: str
    model_digests: dict[str, str]
    space: list[dict[str, Any]]  # name, choices, default, effect, doc of every knob


class Run(Record):
    """One load run of a trial with its judgement. ``folder`` is relative to the run folder."""

    folder: str
    measurement: Measurement
    verdict: Verdict


class Reference(Record):
    """The highest-precision variant with the engine's defaults: what relative targets and quality refer to."""

    identity: EngineIdentity
    unloaded: Measurement
    unloaded_ms: dict[str, float]  # median per metric
    targets_ms: dict[str, float]  # resolved SLO
    accuracy: dict[str, float]  # per quality task, full set
    quality_file: str | None  # TaskScores of the reference
    words: dict[str, Any] = {}  # scenarios.words.Words: what prompts are made of, the same in every trial


class Transferred(Record):
    """Configurations that were best in earlier studies, as the present space has them, best first."""

    knobs: tuple[dict[str, Any], ...]
    sources: tuple[str, ...]  # where each comes from, for people
    notes: tuple[str, ...] = ()  # how those studies differ from this one


class TrialResult(Record):
    trial: Trial
    origin: str = ""  # who proposed it: "defaults", "preset NAME", "transfer", "control arm"; the tuner: ""
    folder: str
    identity: EngineIdentity | None
    cold_start_s: float | None
    expected_memory_bytes: int | None
    capacity: Capacity | None  # objective goodput
    runs: tuple[Run, ...]
    quality: QualityVerdict | None
    quality_from: str | None  # folder of the trial whose quality was taken over (same answers by construction)
    log_lines: tuple[str, ...] = ()
    voided: int = 0  # runs that were repeated because the load generator or the host was at fault

    @property
    def is_control(self) -> bool:
        """The defaults, or a preset of the engine: measured to compare with, outside the budget."""
        return self.trial.number == 0 or self.origin.startswith(PRESET)

    @property
    def certain_rps(self) -> float:
        """What it holds for certain: the lower end of its capacity's interval, or its score where none was told."""
        if not self.trial.feasible:
            return 0.0
        low = self.capacity.rate_low_rps if self.capacity else None
        return low or self.trial.score or 0.0


class FinalsRun(Record):
    block: int
    position: int  # in the block; the order is reversed from block to block
    trial: int
    seed: int
    score: float
    capacity: Capacity | None
    runs: tuple[Run, ...]


class Certification(Record):
    """Runs at one rate, one after the other on one engine, until the sequential verdict is in.

    ``run`` is the last of them; its verdict is that of all. ``earlier``: those before it, oldest first.
    """

    trial: int
    rate_rps: float
    run: Run
    earlier: tuple[Run, ...] = ()


class FinalistSummary(Record):
    trial: int
    knobs: dict[str, Any]
    scores: tuple[float, ...]  # per block
    gain: Estimate | None  # ratio to the default in the same block; None for the default itself
    changed_knobs: int
    quality_passed: bool | None


class Winner(Record):
    """The answer of a study. ``keep_defaults``: nothing beat the defaults significantly; a success too."""

    outcome: Literal["tuned", "keep_defaults", "none_feasible"]
    reason: str  # one or two sentences for people
    objective: str
    trial: int | None
    config: dict[str, Any] | None  # ServingConfig
    identity: EngineIdentity | None
    default_config: dict[str, Any]
    gain: Estimate | None  # ratio of scores, winner / default, held-out seeds, interval Bonferroni-corrected
    score: float | None  # mean over the blocks
    default_score: float | None
    score_unit: str  # "requests/s" | "slack" | "ms"
    finalists: tuple[FinalistSummary, ...]
    certified_rate_rps: float | None
    certification: Verdict | None
    certified: Measurement | None
    quality: QualityVerdict | None
    nearest_miss: str | None  # none_feasible: which target, by how much
    scenario_digest: str
    workload_digest: str
    simulated: bool = False  # every figure follows from a stated law; no hardware was measured
    export: dict[str, Any]  # {"llama-server": "llama-server --model … ", "environment": {...}}
