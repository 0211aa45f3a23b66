"""The loop: reference, control, trials, finalists, certificate, winner. Every step is in the ledger once.

What a step does depends on the scenario and on earlier steps alone, so a study that was killed anywhere is
finished by running it again, and reaches the same answer. Knows nothing of reports or trackers.
"""

import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from pydantic import BaseModel

from harness import host as hosts
from harness.bench import Loaded, Observer, Session, Subject, session
from harness.errors import ConfigurationImpossible, HostDisturbed, TrialInfeasible, TrialVoid
from harness.ledger import Ledger, unusable
from harness.measurement import QualityVerdict, dump
from harness.observe import Target
from harness.quality.runner import ReferenceAnswers, judge_quality, reference_answers
from scenarios.errors import UserError
from scenarios.load import dump_yaml
from scenarios.space import SearchSpace, ServingConfig
from scenarios.spec import Scenario
from scenarios.words import Words, candidates
from tuners import select
from tuners.base import Trial, Tuner
from tuners.evaluate import SCORE_UNITS, Evaluation, Hints, evaluate
from tuners.results import (
    Certification,
    FinalistSummary,
    FinalsRun,
    Reference,
    Run,
    StudyStart,
    TrialResult,
    Winner,
)

CERTIFY_SHARES = (0.85, 0.7, 0.5)  # of the capacity: at the capacity itself a P95 promise is a coin toss
SEEDS_PER_WORKLOAD_SEED = 10_000
SEED_WARMUP, SEED_UNLOADED, SEED_FINALS, SEED_CERTIFY = 900, 950, 1000, 5000  # offsets; trials use 0 …
UNLAUNCHED_PROPOSALS = 200  # configurations that cannot be planned, before the search gives up asking

R = TypeVar("R", bound=BaseModel)


class StudyObserver(Observer):
    """Hears, besides what a bench says, how far the study is."""

    def progress(self, done: int, total: int) -> None: ...

    def trial(self, result: TrialResult) -> None: ...


@dataclass(slots=True)
class Study:
    """One study in one folder. ``run`` may be called again after any interruption."""

    subject: Subject
    space: SearchSpace  # as narrowed by the scenario
    tuner: Tuner
    observer: StudyObserver
    scenario_file: str
    command: str
    clock: Callable[[], float] = time.monotonic

    @property
    def scenario(self) -> Scenario:
        return self.subject.scenario

    @property
    def root(self) -> Path:
        return self.subject.root

    def run(self) -> Winner:
        """Raises HostDisturbed when the machine will not let a step be measured; nothing done is lost."""
        self.root.mkdir(parents=True, exist_ok=True)
        with Ledger(self.root / "ledger.jsonl") as ledger:
            start = self._step(ledger, "study", StudyStart, self._start)
            if start.scenario_digest != self.scenario.digest:
                raise UserError(f"{self.root} holds a study of another scenario; choose another --run folder")
            reference = self._step(ledger, "reference", Reference, self._reference)
            self._resolve(reference)
            results = self._trials(ledger, reference)
            trials = [r.trial for r in results]
            best = select.finalists(trials, self.scenario.search.finalists)
            control = trials[select.CONTROL]
            if not best and not (control.feasible and control.score):
                return self._step(ledger, "winner", Winner, lambda: self._none_feasible(results))
            runs = self._finals(ledger, results, [control, *best] if best else [])
            choice = select.choose(trials, runs, self.scenario.search.tie)
            chosen, quality = self._first_that_keeps_quality(ledger, results, choice)
            certified = self._certify(ledger, results, chosen, choice)
            return self._step(
                ledger, "winner", Winner, lambda: self._winner(results, choice, chosen, quality, certified)
            )

    def _step(self, ledger: Ledger, name: str, kind: type[R], work: Callable[[], R]) -> R:
        return kind.model_validate(ledger.once(name, lambda: dump(work())))

    # -- before the search ---------------------------------------------------------------------------

    def _start(self) -> StudyStart:
        try:
            (self.root / "scenario.yaml").write_text(dump_yaml(self.scenario), encoding="utf-8")
        except OSError as err:
            raise unusable(self.root, err) from err
        return StudyStart(
            scenario=self.scenario.to_dict(),
            scenario_digest=self.scenario.digest,
            scenario_file=self.scenario_file,
            command=self.command,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            host=hosts.fingerprint(),
            engine_version=self.subject.engine_version,
            model_digests=dict(self.subject.model.digests),
            space=[
                {"name": k.name, "choices": list(k.choices), "default": k.default, "effect": k.effect, "doc": k.doc}
                for k in self.space.knobs
            ],
        )

    def _reference(self) -> Reference:
        """The defaults at their highest precision: unloaded latency, resolved targets, answers to every item."""
        folder = self.root / "trials" / "ref"
        self.observer.note("reference: the engine's defaults at the highest precision")

        def measure() -> Reference:
            with session(self.subject, self.space.default(), folder) as s:
                words = self.subject.words or build_words(s)
                s.subject = replace(self.subject, words=words)
                loaded = s.unloaded(self._seed(SEED_UNLOADED))
                quality_file, accuracy = self._answer_everything(s, folder)
                unloaded_ms = {m: median_ms(loaded, m) for m in self.scenario.slo.targets}
                return Reference(
                    identity=self.subject.identity(s.plan),
                    unloaded=loaded.measurement,
                    unloaded_ms=unloaded_ms,
                    targets_ms=resolve_targets(self.scenario, unloaded_ms),
                    accuracy=accuracy,
                    quality_file=quality_file,
                    words=words.to_dict(),
                )

        return self._until_not_void(measure, folder)[0]

    def _answer_everything(self, s: Session, folder: Path) -> tuple[str | None, dict[str, float]]:
        gate = self.scenario.quality
        if not gate.tasks:
            return None, {}
        self.observer.begin("quality reference", None)
        answers = reference_answers(s.running.endpoint, gate, concurrency=_lanes(s))
        path = folder / "reference-answers.json"
        answers.save(path)
        return str(path.relative_to(self.root)), {score.task: score.accuracy for score in answers.scores}

    def _resolve(self, reference: Reference) -> None:
        self.subject = resolved(self.subject, reference)
        told = ", ".join(f"{t.metric} P{t.percentile:g} <= {t.target_ms:.0f} ms" for t in self.subject.targets)
        self.observer.note(f"targets: {told}")

    # -- the search ----------------------------------------------------------------------------------

    def _trials(self, ledger: Ledger, reference: Reference) -> list[TrialResult]:
        """The control, then the tuner's proposals, until the budget is spent or the space is."""
        budget = self.scenario.budget
        results: list[TrialResult] = []
        unlaunched: list[Trial] = []
        while len(results) <= budget.trials:
            number = len(results)
            spent_s = sum(r.trial.seconds for r in results[1:])
            if budget.wall_clock_s is not None and spent_s >= budget.wall_clock_s:
                self.observer.note(f"budget.wall_clock_s is spent after {number - 1} trials")
                break
            if results and self.scenario.objective == "meet" and _meets(results[-1]):
                self.observer.note(f"trial {number - 1:03d} meets every target: objective reached")
                break
            config = self._propose(results, unlaunched)
            if config is None:
                self.observer.note("every configuration of the space has been tried")
                break
            self.observer.progress(number, budget.trials + 1)
            result = self._step(
                ledger,
                f"trial/{number:03d}",
                TrialResult,
                lambda number=number, config=config: self._try(number, config, results, reference),  # type: ignore[misc]
            )
            results.append(result)
            self.observer.trial(result)
        return results

    def _propose(self, results: list[TrialResult], unlaunched: list[Trial]) -> ServingConfig | None:
        """The control first; then the tuner's next that can be planned. What cannot is told to it, unlaunched."""
        if not results:
            return self.space.default()
        for _ in range(UNLAUNCHED_PROPOSALS):
            config = self.tuner.ask([*(r.trial for r in results), *unlaunched])
            if config is None:
                return None
            try:
                self.subject.plan(config)
            except ConfigurationImpossible as err:
                unlaunched.append(_infeasible(len(results), config, "impossible", str(err), 0.0))
                continue
            return config
        return None

    def _try(self, number: int, config: ServingConfig, earlier: list[TrialResult], reference: Reference) -> TrialResult:
        folder = self.root / "trials" / f"{number:03d}"
        self.observer.note(f"trial {number:03d}: {describe(config, self.space)}")
        started = self.clock()
        voided = 0
        try:
            result, voided = self._until_not_void(
                lambda: self._measured(number, config, folder, earlier, reference), folder
            )
        except TrialInfeasible as err:
            result = TrialResult(
                trial=_infeasible(number, config, err.failure, str(err).splitlines()[0], 0.0),
                folder=str(folder.relative_to(self.root)),
                identity=self.subject.identity(self.subject.plan(config)),
                cold_start_s=None,
                expected_memory_bytes=self.subject.plan(config).expected_memory_bytes,
                capacity=None,
                runs=(),
                quality=None,
                quality_from=None,
                log_lines=err.log_lines,
            )
        timed = result.trial.model_copy(update={"seconds": round(self.clock() - started, 3)})
        return result.model_copy(update={"trial": timed, "voided": voided})

    def _measured(
        self, number: int, config: ServingConfig, folder: Path, earlier: list[TrialResult], reference: Reference
    ) -> TrialResult:
        """Quality first, since it is cheap to fail; then load. One launch for both."""
        with session(self.subject, config, folder) as s:
            quality, quality_from = self._screen(s, config, earlier, reference, folder)
            evaluation: Evaluation | None = None
            if quality is None or quality.passed:
                s.warm_up(self._seed(SEED_WARMUP))
                evaluation = self._evaluate(s, earlier, reference)
            state = "quality" if evaluation is None else "complete"
            constraints = {"quality": quality.violation if quality else 0.0}
            if evaluation is not None:
                constraints["slo"] = evaluation.slo_violation
            return TrialResult(
                trial=Trial(
                    number=number,
                    knobs=dict(config.knobs),
                    config_digest=config.digest,
                    state=state,
                    score=evaluation.score if evaluation else None,
                    constraints=constraints,
                    seconds=0.0,
                    why=evaluation.why if evaluation else "; ".join(quality.reasons if quality else ()),
                ),
                folder=str(folder.relative_to(self.root)),
                identity=self.subject.identity(s.plan),
                cold_start_s=s.running.cold_start_s,
                expected_memory_bytes=s.plan.expected_memory_bytes,
                capacity=evaluation.capacity if evaluation else None,
                runs=evaluation.runs if evaluation else (),
                quality=quality,
                quality_from=quality_from,
            )

    def _screen(
        self, s: Session, config: ServingConfig, earlier: list[TrialResult], reference: Reference, folder: Path
    ) -> tuple[QualityVerdict | None, str | None]:
        """The cheap levels of the quality cascade, unless an earlier trial already gave the same answers.

        Configurations that differ only in knobs which the engine says cannot change the output answer alike;
        a winner's answers are compared in full all the same.
        """
        if reference.quality_file is None:
            return None, None
        if self._output_key(config) == self._output_key(self.space.default()):
            return None, "trials/ref"
        for result in earlier:
            same = self._output_key(ServingConfig(config.engine, result.trial.knobs)) == self._output_key(config)
            if same and result.quality is not None and result.quality_from is None:
                return result.quality, result.folder
        return self._judge_quality(s, reference, "screen", folder), None

    def _judge_quality(self, s: Session, reference: Reference, level: str, folder: Path) -> QualityVerdict:
        assert reference.quality_file is not None
        self.observer.begin(f"quality {level}", None)
        return judge_quality(
            s.running.endpoint,
            self.scenario.quality,
            ReferenceAnswers.load(self.root / reference.quality_file),
            level="full" if level == "full" else "screen",
            answers_path=folder / f"quality-{level}.json",
            concurrency=_lanes(s),
        )

    def _output_key(self, config: ServingConfig) -> tuple[object, ...]:
        return tuple(config.knobs.get(k.name) for k in self.space.knobs if k.affects_output)

    def _evaluate(self, s: Session, earlier: list[TrialResult], reference: Reference) -> Evaluation:
        scores = [r.trial.score or 0.0 for r in earlier if r.trial.feasible]
        if earlier and earlier[0].capacity and earlier[0].capacity.rate_rps > 0:
            guess = earlier[0].capacity.rate_rps
        else:
            guess = 1000 / _answer_ms(reference)
        hints = Hints(guess, best_rps=max(scores, default=None))
        rate = None
        if self.scenario.objective != "goodput":
            rate = self._asked_rate(earlier, lambda: self._default_capacity(s, hints))
        return evaluate(s, self.scenario, rate_rps=rate, seed=self._seed(0), hints=hints)

    def _default_capacity(self, s: Session, hints: Hints) -> float:
        """Of the control, when the scenario asks for a multiple of it."""
        as_goodput = self.scenario.model_copy(update={"objective": "goodput"})
        found = evaluate(s, as_goodput, rate_rps=None, seed=self._seed(0), hints=hints, prefix="capacity-")
        if found.score <= 0:
            raise UserError(
                "workload.arrivals.rate.times_default_capacity: the default configuration meets the targets at no "
                f"rate ({found.why}); give rate.rps, or relax the slo"
            )
        return found.score

    def _asked_rate(self, earlier: list[TrialResult], default_capacity: Callable[[], float]) -> float | None:
        """The scenario's rate in requests/s; a relative one is resolved by the control and read back from it."""
        rate = self.scenario.workload.arrivals.rate
        if rate is None:
            return None
        if rate.rps is not None:
            return rate.rps
        assert rate.times_default_capacity is not None
        if earlier:
            recorded = earlier[0].runs[0].measurement.rate_rps
            if self.scenario.objective != "goodput" and recorded is not None:
                return recorded
            if earlier[0].capacity is not None:
                return rate.times_default_capacity * earlier[0].capacity.rate_rps
        return rate.times_default_capacity * default_capacity()

    # -- after the search ----------------------------------------------------------------------------

    def _finals(self, ledger: Ledger, results: list[TrialResult], entrants: list[Trial]) -> list[FinalsRun]:
        """Blocks of all entrants on held-out seeds, in alternating order so that drift of the host cancels."""
        runs = []
        for block in range(self.scenario.budget.finalist_blocks if entrants else 0):
            order = entrants if block % 2 == 0 else entrants[::-1]
            for position, trial in enumerate(order):
                self.observer.note(f"finals, block {block + 1}: trial {trial.number:03d}")
                runs.append(
                    self._step(
                        ledger,
                        f"finals/{block}/{trial.number:03d}",
                        FinalsRun,
                        lambda b=block, p=position, t=trial: self._final(b, p, t, results),  # type: ignore[misc]
                    )
                )
        return runs

    def _final(self, block: int, position: int, trial: Trial, results: list[TrialResult]) -> FinalsRun:
        folder = self.root / "trials" / f"{trial.number:03d}" / f"final-{block}"
        seed = self._seed(SEED_FINALS + 100 * block)
        rate = self._asked_rate(results, lambda: 0.0) if self.scenario.objective != "goodput" else None

        def measure() -> FinalsRun:
            with session(self.subject, self._config(trial), folder) as s:
                s.warm_up(seed + 99)
                hints = Hints(trial.score or results[0].trial.score or 1.0, near=bool(trial.score))
                found = evaluate(s, self.scenario, rate_rps=rate, seed=seed, hints=hints)
                score = found.score if found.slo_violation <= 0 else 0.0
                return FinalsRun(
                    block=block,
                    position=position,
                    trial=trial.number,
                    seed=seed,
                    score=score,
                    capacity=found.capacity,
                    runs=found.runs,
                )

        try:
            return self._until_not_void(measure, folder)[0]
        except TrialInfeasible as err:
            self.observer.note(f"  {str(err).splitlines()[0]}")
            return FinalsRun(
                block=block, position=position, trial=trial.number, seed=seed, score=0.0, capacity=None, runs=()
            )

    def _first_that_keeps_quality(
        self, ledger: Ledger, results: list[TrialResult], choice: select.Choice
    ) -> tuple[int, QualityVerdict | None]:
        """The best finalist whose answers, on every item of every task, are no worse than the margin allows."""
        reference = Reference.model_validate(ledger.once("reference", dict))
        for number in choice.order:
            if reference.quality_file is None:
                return number, None
            verdict = self._step(
                ledger,
                f"quality/{number:03d}",
                QualityVerdict,
                lambda n=number: self._full_quality(n, results, reference),  # type: ignore[misc]
            )
            if verdict.passed:
                return number, verdict
            self.observer.note(f"trial {number:03d} loses too much accuracy: {'; '.join(verdict.reasons)}")
        return select.CONTROL, None

    def _full_quality(self, number: int, results: list[TrialResult], reference: Reference) -> QualityVerdict:
        folder = self.root / "trials" / f"{number:03d}"
        self.observer.note(f"quality of trial {number:03d} on every item")
        with session(self.subject, self._config(results[number].trial), folder / "quality") as s:
            return self._judge_quality(s, reference, "full", folder)

    def _certify(
        self, ledger: Ledger, results: list[TrialResult], chosen: int, choice: select.Choice
    ) -> Certification | None:
        """A long run on fresh traffic: at the asked rate, or at falling shares of the capacity until one passes."""
        if self.scenario.workload.arrivals.process == "closed":
            return None
        rate = self._asked_rate(results, lambda: 0.0)
        capacity = _mean_score(choice.summaries, chosen) or results[chosen].trial.score or 0.0
        rates = [rate] if rate else [share * capacity for share in CERTIFY_SHARES]
        found: Certification | None = None
        for attempt, rate_rps in enumerate(rates):
            found = self._step(
                ledger,
                f"certify/{chosen:03d}/{attempt}",
                Certification,
                lambda k=attempt, r=rate_rps: self._certification(chosen, r, k, results),  # type: ignore[misc]
            )
            if found.run.verdict.outcome == "PASS":
                break
        return found

    def _certification(self, number: int, rate_rps: float, attempt: int, results: list[TrialResult]) -> Certification:
        folder = self.root / "trials" / f"{number:03d}" / f"certify-{attempt}"
        self.observer.note(f"certify trial {number:03d} at {rate_rps:.2f} requests/s")

        def measure() -> Certification:
            with session(self.subject, self._config(results[number].trial), folder) as s:
                s.warm_up(self._seed(SEED_WARMUP))
                loaded = s.hold(
                    rate_rps,
                    self.scenario.budget.certify_s,
                    self._seed(SEED_CERTIFY + attempt),
                    "hold",
                    until_certain=True,
                )
                run = Run(
                    folder=str(loaded.folder.relative_to(self.root)),
                    measurement=loaded.measurement,
                    verdict=loaded.verdict,
                )
                return Certification(trial=number, rate_rps=rate_rps, run=run)

        return self._until_not_void(measure, folder)[0]

    def _winner(
        self,
        results: list[TrialResult],
        choice: select.Choice,
        chosen: int,
        quality: QualityVerdict | None,
        certified: Certification | None,
    ) -> Winner:
        summaries = {s.trial: s for s in choice.summaries}
        control, winner = results[select.CONTROL].trial, results[chosen].trial
        gain = summaries[chosen].gain if chosen in summaries else None
        unit = SCORE_UNITS[self.scenario.objective]
        default_score = _mean_score(choice.summaries, select.CONTROL) or control.score
        score = _mean_score(choice.summaries, chosen) or winner.score
        if chosen == select.CONTROL:
            reason = (
                "No configuration beat the engine's defaults significantly on held-out traffic"
                + (" while keeping its accuracy" if choice.order else "")
                + ". Keep the defaults."
            )
        elif gain is None:
            reason = f"Trial {chosen:03d} meets every target; the engine's defaults do not."
        else:
            reason = (
                f"Trial {chosen:03d} gives {gain.value:.2f} times the default's {unit} on held-out traffic "
                f"({gain.confidence:.1%} interval {gain.low:.2f} to {gain.high:.2f}) and keeps its accuracy."
            )
        return self._answer(
            outcome="keep_defaults" if chosen == select.CONTROL else "tuned",
            reason=reason,
            trial=winner,
            identity=results[chosen].identity,
            gain=gain,
            score=score,
            default_score=default_score,
            finalists=tuple(
                s.model_copy(update={"quality_passed": quality.passed}) if quality and s.trial == chosen else s
                for s in choice.summaries
            ),
            certified_rate_rps=_certified_rate(certified),
            certification=certified.run.verdict if certified else None,
            certified=certified.run.measurement if certified else None,
            quality=quality,
        )

    def _none_feasible(self, results: list[TrialResult]) -> Winner:
        return self._answer(
            outcome="none_feasible",
            reason="No configuration of the space meets every target.",
            nearest_miss=select.nearest_miss(results),
        )

    def _answer(self, *, trial: Trial | None = None, **known: object) -> Winner:
        """The Winner document, with what is the same for every outcome; also written to winner.json."""
        config = self._config(trial) if trial else None
        plan = self.subject.plan(config) if config else None
        blank: dict[str, object] = dict.fromkeys(
            ["identity", "gain", "score", "default_score", "certified_rate_rps", "certification", "certified"]
        )
        winner = Winner.model_validate(
            {
                **blank,
                "quality": None,
                "nearest_miss": None,
                "finalists": (),
                "objective": self.scenario.objective,
                "trial": trial.number if trial else None,
                "config": config.to_dict() if config else None,
                "default_config": self.space.default().to_dict(),
                "score_unit": SCORE_UNITS[self.scenario.objective],
                "scenario_digest": self.scenario.digest,
                "workload_digest": self.scenario.workload.digest,
                "export": {"shell": shlex.join(_on_port(plan.deploy_argv)), "env": dict(plan.env)} if plan else {},
                **known,
            }
        )
        path = self.root / "winner.json"
        try:
            partial = path.with_suffix(".part")
            partial.write_text(winner.model_dump_json(indent=2) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as err:
            raise unusable(path, err) from err
        return winner

    # -- shared --------------------------------------------------------------------------------------

    def _seed(self, offset: int) -> int:
        return self.scenario.workload.seed * SEEDS_PER_WORKLOAD_SEED + offset

    def _config(self, trial: Trial) -> ServingConfig:
        return ServingConfig(self.space.engine, trial.knobs)

    def _until_not_void(self, measure: Callable[[], R], folder: Path) -> tuple[R, int]:
        """``measure``'s result and how often it was void before. A void run's records are thrown away."""
        for attempt in range(self.scenario.budget.void_retries + 1):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                return measure(), attempt
            except TrialVoid as err:
                self.observer.note(f"  void, repeated: {err}")
                last = err
        raise HostDisturbed(
            f"{folder}: void {self.scenario.budget.void_retries + 1} times in a row ({last}). This machine is too busy "
            "to measure on; nothing recorded is lost: quieten it and go on with --resume"
        ) from last


def resolved(subject: Subject, reference: Reference) -> Subject:
    """``subject`` with the targets in milliseconds and the words that ``reference`` settled."""
    targets = tuple(
        Target(metric, target.percentile, reference.targets_ms[metric])
        for metric, target in subject.scenario.slo.targets.items()
    )
    return replace(subject, targets=targets, words=Words.from_dict(reference.words))


def build_words(s: Session) -> Words:
    """What prompts are made of: words that the server's own tokenizer sees as one token each."""
    engine, endpoint = s.subject.engine, s.running.endpoint
    if engine.tokenize(endpoint, " the") is None:
        return Words.build(candidates(), None)
    return Words.build(candidates(), lambda text: len(engine.tokenize(endpoint, text) or ()))


def resolve_targets(scenario: Scenario, unloaded_ms: dict[str, float]) -> dict[str, float]:
    """Every SLO target in milliseconds; relative ones are multiples of the unloaded median."""
    targets = {}
    for metric, target in scenario.slo.targets.items():
        if target.target_ms is not None:
            targets[metric] = target.target_ms
        else:
            assert target.times_unloaded is not None
            targets[metric] = round(target.times_unloaded * unloaded_ms[metric], 3)
    return targets


def describe(config: ServingConfig, space: SearchSpace) -> str:
    """What differs from the defaults, for people."""
    default = space.default().knobs
    changed = [f"{k}={v}" for k, v in config.knobs.items() if default.get(k) != v]
    return " ".join(changed) or "the engine's defaults"


def _infeasible(number: int, config: ServingConfig, failure: str, why: str, seconds: float) -> Trial:
    return Trial(
        number=number,
        knobs=dict(config.knobs),
        config_digest=config.digest,
        state="infeasible",
        score=None,
        constraints={"engine": 1.0},
        seconds=seconds,
        failure=failure,
        why=why,
    )


def _lanes(s: Session) -> int:
    """Quality questions asked at once: enough to use the engine's batching, no more than fit its cache."""
    slots = s.plan.config.knobs.get("slots", 8)
    return int(slots) if isinstance(slots, int) else 8


def median_ms(loaded: Loaded, metric: str) -> float:
    value = loaded.measurement.metrics[f"{metric}_p50_ms"].value
    if value is None:
        raise UserError(f"the unloaded engine answers too few requests to know its {metric}: see {loaded.folder}")
    return value


def _answer_ms(reference: Reference) -> float:
    value = reference.unloaded.metrics["e2e_p50_ms"].value
    assert value is not None
    return value


def _meets(result: TrialResult) -> bool:
    return result.trial.feasible and all(run.verdict.outcome == "PASS" for run in result.runs)


def _mean_score(summaries: tuple[FinalistSummary, ...], trial: int) -> float | None:
    return next((fmean(s.scores) for s in summaries if s.trial == trial), None)


def _certified_rate(certified: Certification | None) -> float | None:
    return certified.rate_rps if certified and certified.run.verdict.outcome == "PASS" else None


def _on_port(argv: tuple[str, ...], port: int = 8080) -> list[str]:
    return [part.format(port=port) if "{port}" in part else part for part in argv]
