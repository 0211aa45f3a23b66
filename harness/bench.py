"""The one place where load meets an engine: launch, warm up, drive, observe, judge.

Knows nothing of searching: it measures the configuration it is given.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx

from harness import audit
from harness.engines.base import LaunchPlan, SaysWhatItRuns
from harness.errors import EngineCrashed, EngineHung
from harness.instruments import Instruments
from harness.judge import judge
from harness.ledger import unusable
from harness.load import payload
from harness.load.driver import drive
from harness.load.fleet import ALONE
from harness.load.records import LiveCounters, LoadPlan, LoadResult
from harness.measurement import Measurement, RunKind, Verdict
from harness.observe import Observed, RunContext, Target, summarise
from harness.stopping import StopWhen, certain_misses, concerned, hopeless
from harness.subject import Subject
from harness.supervise import Running, complete, launch
from scenarios import workload as schedules
from scenarios.space import ServingConfig
from scenarios.traffic import Workload
from scenarios.words import estimated_tokens
from scenarios.workload import Schedule, Words

NS = 1_000_000_000
DRAIN_PROBES = 3
FEWEST_REQUESTS = 20  # less says nothing about a P95
UNLOADED_REQUESTS = 24  # of each traffic class
CLOSED_RPS_PER_LANE = 50  # more answers a second than one lane of a closed loop gives
CLOSED_MOST = 20_000  # requests of one closed loop: they are all made beforehand
UNLOADED_SKIPPED = 4  # the first answers pay for cold caches


@dataclass(frozen=True, slots=True)
class Loaded:
    """One run of load: the folder of its records, what was seen, and the judgement."""

    folder: Path
    observed: Observed
    verdict: Verdict
    load: LoadResult

    @property
    def measurement(self) -> Measurement:
        return self.observed.measurement


@contextlib.contextmanager
def session(subject: Subject, config: ServingConfig, folder: Path) -> Iterator["Session"]:
    """A running engine, ready to be loaded. One launch answers all questions about a configuration.

    Raises ConfigurationImpossible, EngineStartError, EngineOutOfMemory; when the body fails because the
    engine has ended, EngineCrashed with the decisive lines of its log.
    """
    plan = subject.plan(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(_plan_document(plan), indent=2) + "\n", encoding="utf-8")
    except OSError as err:
        raise unusable(folder, err) from err
    for notice in plan.notices:
        subject.observer.note(f"  {notice}")
    subject.observer.begin("launch", None)
    with launch(subject.engine, subject.scenario.engine, plan, folder / "engine.log") as running:
        for notice in running.notices:
            subject.observer.note(f"  {notice}")
        if isinstance(subject.engine, SaysWhatItRuns):
            for line in subject.engine.disagreements(plan, running.log_path.read_text("utf-8", "replace")):
                subject.observer.note(f"  {line}")
        try:
            yield Session(subject, running, plan, folder)
        except EngineCrashed:
            running.check()  # says more, if the process has ended
            raise


def _plan_document(plan: LaunchPlan) -> dict[str, object]:
    document = asdict(replace(plan, config=ServingConfig("", {})))
    return {**document, "config": plan.config.to_dict()}


class Session:
    """One configuration under measurement."""

    def __init__(self, subject: Subject, running: Running, plan: LaunchPlan, folder: Path) -> None:
        self.subject = subject
        self.running = running
        self.plan = plan
        self.folder = folder
        self._said_filling = False

    @property
    def workload(self) -> Workload:
        return self.subject.scenario.workload

    @property
    def words(self) -> Words:
        assert self.subject.words is not None
        return replace(self.subject.words, count=self._tokens_of) if self._quotes else self.subject.words

    @property
    def _quotes(self) -> bool:
        """Whether real texts are sent, of which only the server knows the tokens."""
        return any(part.traffic.trace and part.traffic.trace.format == "sharegpt" for part in self.workload.mix)

    def _tokens_of(self, text: str) -> int:
        counted, engine = self.subject.counted, self.subject.engine
        if text not in counted:
            tokens = engine.tokenize(self.running.endpoint, text)
            counted[text] = estimated_tokens(text) if tokens is None else len(tokens)
        return counted[text]

    def _fewest_requests(self) -> float:
        """So many that each class with promises of its own has FEWEST_REQUESTS."""
        judged = {t.traffic_class for t in self.subject.targets}
        return FEWEST_REQUESTS / min((part.share for part in self.workload.mix if part.name in judged), default=1.0)

    def warm_up(self, seed: int) -> None:
        """Fresh content, a few requests at a time, for ``budget.warmup_s``; measured by nobody."""
        seconds = self.subject.scenario.budget.warmup_s
        if seconds <= 0:
            return
        lanes = 4
        most = lanes * CLOSED_RPS_PER_LANE * max(1, round(seconds))
        schedule = schedules.sequence(self.workload, self.words, n=most, seed=seed)
        self.subject.observer.begin("warm-up", seconds)
        plan = self._load_plan(schedule, concurrency=lanes, drain_s=self.workload.timeout_s)
        load = self._drive(plan, self.folder / "warm-up", {}, stop_when=lambda counters: counters.elapsed_s > seconds)
        self._let_drain(load)

    def unloaded(self, seed: int) -> Loaded:
        """One request at a time: the latency that no queue has touched."""
        for _ in range(UNLOADED_SKIPPED):
            complete(self.running.endpoint, timeout_s=self.workload.timeout_s)
        n = UNLOADED_REQUESTS * len(self.workload.mix)
        schedule = schedules.sequence(self.workload, self.words, n=n, seed=seed, evenly=True)
        plan = self._load_plan(schedule, concurrency=1, drain_s=self.workload.timeout_s)
        return self._measure("unloaded", plan, schedule, warmup_s=0.0, targets=())

    def ramp(self, start_rps: float, end_rps: float, seed: int, name: str = "ramp") -> Loaded:
        """An exponentially growing rate, cut short once a fifth of all requests has missed a target.

        After its last request, what is still open is waited for until it has missed the tightest target: on an
        engine of slow answers a short ramp would show no miss at all.
        """
        schedule = schedules.ramp(
            self.workload,
            self.words,
            start_rps=start_rps,
            end_rps=end_rps,
            duration_s=self.ramp_seconds(start_rps, end_rps),
            seed=seed,
        )
        most = {t.metric: max(8, len(concerned(schedule, t)) // 5) for t in self.subject.targets}
        plan = self._load_plan(schedule, drain_s=1 + min(self._waits_s(), default=0.0), stop_after_misses=most)
        return self._measure("ramp", plan, schedule, warmup_s=0.0, targets=self.subject.targets, name=name)

    def ramp_seconds(self, start_rps: float, end_rps: float) -> float:
        """``budget.ramp_s``, or as long as it takes to expect FEWEST_REQUESTS."""
        mean_rps = (end_rps - start_rps) / math.log(end_rps / start_rps)
        return max(self.subject.scenario.budget.ramp_s, self._fewest_requests() / mean_rps)

    def hold(self, rate_rps: float, seconds: float, seed: int, name: str, *, until_certain: bool) -> Loaded:
        """A constant rate. The warm-up at that rate comes on top of ``seconds`` and is not judged; a slow rate
        is held for as long as it takes to expect FEWEST_REQUESTS.

        until_certain: stop once the percentile over the whole hold must lie above a target, or once the misses so
        far are evidence enough that it would.
        """
        warmup_s = self.subject.scenario.budget.warmup_s
        seconds = max(seconds, self._fewest_requests() / rate_rps)
        schedule = schedules.hold(
            self.workload, self.words, rate_rps=rate_rps, duration_s=warmup_s + seconds, seed=seed
        )
        misses = certain_misses(schedule, warmup_s, self.subject.targets) if until_certain else None
        plan = self._load_plan(schedule, drain_s=self._patience_s(), stop_after_misses=misses, misses_from_s=warmup_s)
        stop_when = (
            hopeless(schedule, warmup_s, self.subject.targets, self.subject.scenario.slo.alpha)
            if until_certain
            else None
        )
        return self._measure(
            "hold", plan, schedule, warmup_s=warmup_s, targets=self.subject.targets, name=name, stop_when=stop_when
        )

    def closed(self, seconds: float, seed: int, name: str) -> Loaded:
        """``workload.arrivals.concurrency`` requests kept in flight for ``seconds`` after the warm-up."""
        concurrency = self.workload.arrivals.concurrency
        assert concurrency is not None
        warmup_s = self.subject.scenario.budget.warmup_s
        most = concurrency * CLOSED_RPS_PER_LANE * max(1, round(warmup_s + seconds))
        schedule = schedules.sequence(self.workload, self.words, n=min(most, CLOSED_MOST), seed=seed)
        plan = self._load_plan(schedule, concurrency=concurrency, drain_s=self._patience_s())
        end_s = warmup_s + seconds
        return self._measure(
            "hold",
            plan,
            schedule,
            warmup_s=warmup_s,
            targets=self.subject.targets,
            name=name,
            seconds=end_s,
            stop_when=lambda counters: counters.elapsed_s > end_s,
        )

    def _patience_s(self) -> float:
        """How long after the last request its answer is waited for: past every target it is a miss anyway."""
        return min(self.workload.timeout_s, 2 + max(self._waits_s(), default=math.inf))

    def _waits_s(self) -> list[float]:
        """The targets by which an open request is late, in s."""
        return [t.target_ms / 1e3 for t in self.subject.targets if t.latency != "tpot"]

    def _hang_s(self) -> float:
        """An answer that is not streamed is silent until it is whole."""
        seconds = self.subject.scenario.engine.hang_timeout_s
        return seconds if self.workload.stream else max(seconds, self.workload.timeout_s + 1)

    def _load_plan(
        self,
        schedule: Schedule,
        *,
        drain_s: float,
        concurrency: int | None = None,
        stop_after_misses: Mapping[str, int] | None = None,
        misses_from_s: float = 0.0,
    ) -> LoadPlan:
        workload, endpoint = self.workload, self.running.endpoint
        return LoadPlan(
            base_url=endpoint.base_url,
            path=payload.path(workload),
            mode="open" if concurrency is None else "closed",
            api=workload.api,
            stream=workload.stream,
            timeout_ns=round(workload.timeout_s * NS),
            drain_ns=round(drain_s * NS),
            hang_ns=round(self._hang_s() * NS),
            requests=payload.planned(workload, schedule, endpoint.served_model, endpoint.request_extras),
            slo_ms={t.metric: t.target_ms for t in self.subject.targets},
            stop_after_misses=dict(stop_after_misses or {}),
            misses_from_ns=round(misses_from_s * NS),
            until_ns=round(schedule.duration_s * NS) if schedule.duration_s else None,
            concurrency=concurrency,
            think_time_ns=round((workload.arrivals.think_time_s or 0) * NS),
            api_key_env=endpoint.api_key_env,
        )

    def _measure(
        self,
        kind: RunKind,
        plan: LoadPlan,
        schedule: Schedule,
        *,
        warmup_s: float,
        targets: tuple[Target, ...],
        name: str | None = None,
        seconds: float | None = None,
        stop_when: StopWhen | None = None,
    ) -> Loaded:
        """``seconds``: when a schedule without times of its own (closed loop) ends."""
        folder = self.folder / (name or kind)
        subject = self.subject
        rate = f" {schedule.rate_rps:.2f} requests/s" if schedule.rate_rps else ""
        subject.observer.begin(f"{kind}{rate}", schedule.duration_s or None)
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        metadata = {
            "seed": str(schedule.seed),
            "rate_rps": repr(schedule.rate_rps),
            "workload_digest": schedule.digest,
            "kind": kind,
            "config_digest": self.plan.config.digest,
        }
        with Instruments(subject.engine, self.running) as instruments:
            load = self._drive(plan, folder, metadata, stop_when=stop_when, look=instruments.look)
        seen = instruments.read(load.records_path, stream=self.workload.stream)
        self._let_drain(load)
        peak = seen.telemetry.rss_peak_bytes
        observed = summarise(
            load.records_path,
            RunContext(
                kind=kind,
                rate_rps=schedule.rate_rps,
                seed=schedule.seed,
                warmup_s=warmup_s,
                window_end_s=seconds or schedule.duration_s or None,
                targets=targets,
                load=load,
                host=seen.host,
                telemetry=seen.telemetry,
                server=seen.server,
                workload_digest=schedule.digest,
                started_at=started_at,
                records_path=str(load.records_path.relative_to(subject.root)),
                command=self._command(schedule),
                stream=self.workload.stream,
                engine_memory_share=peak and peak / subject.host.memory_bytes,
            ),
        )
        verdict = judge(observed, subject.scenario.slo.alpha)
        try:
            observed.measurement.save(folder / "measurement.json")
            (folder / "verdict.json").write_text(verdict.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as err:
            raise unusable(folder, err) from err
        if kind == "hold" and observed.filling and not load.stopped_early and not self._said_filling:
            self._said_filling = True
            subject.observer.note(
                "  this hold ended before, or soon after, the engine had filled up: whether it keeps up is not known "
                "(longer: budget.warmup_s, to several answers under load, or budget.hold_s)"
            )
        for line in seen.server.disagreements if seen.server else ():
            subject.observer.note(f"  {line}")
        if verdict.outcome == "VOID":
            raise audit.void(observed.measurement.audit)
        return Loaded(folder, observed, verdict, load)

    def _drive(
        self,
        plan: LoadPlan,
        folder: Path,
        metadata: Mapping[str, str],
        *,
        stop_when: StopWhen | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> LoadResult:
        def on_live(counters: LiveCounters) -> bool:
            self.subject.observer.live(counters)
            self.running.check()
            look()
            return stop_when is not None and stop_when(counters)

        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise unusable(folder, err) from err
        result = drive(plan, folder, fleet=self.subject.fleet, on_live=on_live, metadata=metadata)
        self.running.check()
        if result.stopped_early == "hung":
            raise self.running.hung(plan.hang_ns / NS)
        return result

    def _let_drain(self, load: LoadResult) -> None:
        """Until the engine has time for a stranger again: what one run left queued is not the next one's latency."""
        if not load.stopped_early:
            return
        try:
            for _ in range(DRAIN_PROBES):
                complete(self.running.endpoint, timeout_s=self.workload.timeout_s)
        except httpx.HTTPError as err:
            self.running.check()
            raise EngineHung(f"{self.subject.engine.name} answers nobody after a run of load: {err}") from err

    def _command(self, schedule: Schedule) -> str:
        """What a person types to measure this again."""
        knobs = " ".join(f"--set {k}={str(v).lower()}" for k, v in sorted(self.plan.config.knobs.items()))
        rate = f" --rate {schedule.rate_rps:g}" if schedule.rate_rps else ""
        fleet = self.subject.fleet
        several = "" if fleet == ALONE else f" --workers {fleet.local}"
        if fleet.remote:
            several += f" --remote-workers {fleet.remote} --listen {fleet.listen[0]}:{fleet.listen[1]}"
        return f"autotune bench {self.subject.root}/scenario.yaml{rate}{several} --seed {schedule.seed} {knobs}".strip()
