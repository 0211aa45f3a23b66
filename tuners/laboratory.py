"""Does the measuring of a study's steps: reference, trial, final, full quality, certificate.

Every result depends on the arguments and on the scenario's seeds alone. Knows nothing of the ledger, of
which step comes next, or of who wins.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from harness.bench import Session, session
from harness.errors import TrialInfeasible, TrialVoid
from harness.judge import judge
from harness.measurement import QualityVerdict
from harness.observe import Observed
from harness.quality.runner import ReferenceAnswers, judge_quality, reference_answers
from harness.subject import Subject
from scenarios.errors import UserError
from scenarios.space import SearchSpace, ServingConfig
from scenarios.spec import Scenario
from tuners.base import Trial, infeasible
from tuners.evaluate import Evaluation, Hints, evaluate, recorded_run
from tuners.results import Certification, FinalsRun, Reference, Run, TrialResult
from tuners.settle import build_words, median_ms, resolve_targets, resolved

CERTIFY_PARTS = 4  # between which the verdict is looked at: a decided run is not prolonged
SEEDS_PER_WORKLOAD_SEED = 10_000
SEED_TRIALS, SEED_WARMUP, SEED_UNLOADED, SEED_FINALS, SEED_CERTIFY = 0, 900, 950, 1000, 5000

R = TypeVar("R")


@dataclass(slots=True)
class Laboratory:
    """Measures on one machine. ``subject`` gains words and targets once the reference is known.

    ``expects``: a model's guess of the score. It says where a ramp begins, and nothing else: it is often wrong.
    """

    subject: Subject
    space: SearchSpace
    expects: Callable[[Sequence[Trial], ServingConfig], float | None] = lambda _history, _config: None
    clock: Callable[[], float] = time.monotonic

    @property
    def scenario(self) -> Scenario:
        return self.subject.scenario

    def settle(self, reference: Reference) -> None:
        """Takes over the words and the targets that the reference settled."""
        self.subject = resolved(self.subject, reference)

    # -- reference -----------------------------------------------------------------------------------

    def reference(self) -> Reference:
        """The defaults at the highest precision: unloaded latency, resolved targets, every answer."""
        folder = self._folder("ref")

        def measure() -> Reference:
            with session(self.subject, self.space.default(), folder) as s:
                words = build_words(s)
                s.subject = replace(self.subject, words=words)
                loaded = s.unloaded(self._seed(SEED_UNLOADED))
                unloaded_ms: dict[str, float] = {m: median_ms(loaded, m) for m in self.scenario.targets}
                quality_file, accuracy = self._answer_everything(s, folder)
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
        self.subject.observer.begin("quality: the reference answers every item", None)
        answers = reference_answers(s.running.endpoint, gate, concurrency=_lanes(s))
        path = folder / "reference-answers.json"
        answers.save(path)
        return self._relative(path), {score.task: score.accuracy for score in answers.scores}

    # -- trial ---------------------------------------------------------------------------------------

    def trial(
        self, number: int, config: ServingConfig, earlier: Sequence[TrialResult], reference: Reference
    ) -> TrialResult:
        """Quality first, since it is cheap to fail; then load. An engine that fails is a result, too.

        Its seconds are those of the attempt that counts: the tuner is never told of a void one.
        """
        folder = self._folder(f"{number:03d}")
        guess_rps = self._guess(config, earlier, reference)

        def attempt() -> TrialResult:
            started = self.clock()
            try:
                result = self._measured(number, config, folder, earlier, reference, guess_rps=guess_rps)
            except TrialInfeasible as err:
                result = self._failed(number, config, folder, err)
            timed = result.trial.model_copy(update={"seconds": round(self.clock() - started, 3)})
            return result.model_copy(update={"trial": timed})

        result, voided = self._until_not_void(attempt, folder)
        return result.model_copy(update={"voided": voided})

    def _failed(self, number: int, config: ServingConfig, folder: Path, err: TrialInfeasible) -> TrialResult:
        plan = self.subject.plan(config)
        return TrialResult(
            trial=infeasible(number, config, err.failure, str(err).splitlines()[0]),
            folder=self._relative(folder),
            identity=self.subject.identity(plan),
            cold_start_s=None,
            expected_memory_bytes=plan.expected_memory_bytes,
            capacity=None,
            runs=(),
            quality=None,
            quality_from=None,
            log_lines=err.log_lines,
        )

    def _measured(
        self,
        number: int,
        config: ServingConfig,
        folder: Path,
        earlier: Sequence[TrialResult],
        reference: Reference,
        *,
        guess_rps: float,
    ) -> TrialResult:
        with session(self.subject, config, folder) as s:
            quality, quality_from = self._screen(s, config, earlier, reference, folder)
            evaluation: Evaluation | None = None
            if quality is None or quality.passed:
                s.warm_up(self._seed(SEED_WARMUP))
                evaluation = self._evaluate(s, earlier, guess_rps)
            constraints = {"quality": quality.violation if quality else 0.0}
            if evaluation is not None:
                constraints["slo"] = evaluation.slo_violation
            return TrialResult(
                trial=Trial(
                    number=number,
                    knobs=dict(config.knobs),
                    config_digest=config.digest,
                    state="complete" if evaluation else "quality",
                    score=evaluation.score if evaluation else None,
                    constraints=constraints,
                    seconds=0.0,
                    launch_s=s.running.cold_start_s,
                    why=evaluation.why if evaluation else "; ".join(quality.reasons if quality else ()),
                ),
                folder=self._relative(folder),
                identity=self.subject.identity(s.plan),
                cold_start_s=s.running.cold_start_s,
                expected_memory_bytes=s.plan.expected_memory_bytes,
                capacity=evaluation.capacity if evaluation else None,
                runs=evaluation.runs if evaluation else (),
                quality=quality,
                quality_from=quality_from,
            )

    def _screen(
        self,
        s: Session,
        config: ServingConfig,
        earlier: Sequence[TrialResult],
        reference: Reference,
        folder: Path,
    ) -> tuple[QualityVerdict | None, str | None]:
        """The cheap levels of the quality cascade, unless an earlier trial already gave the same answers.

        Configurations that differ only in knobs which the engine says cannot change the output answer alike;
        a winner's answers are compared in full all the same.
        """
        if reference.quality_file is None:
            return None, None
        key = self.space.output_key(config)
        if key == self.space.output_key(self.space.default()):
            return None, "trials/ref"
        for result in earlier:
            same = self.space.output_key(self.config(result.trial)) == key
            if same and result.quality is not None and result.quality_from is None:
                return result.quality, result.folder
        return self._judge_quality(s, reference, "screen", folder), None

    def _judge_quality(self, s: Session, reference: Reference, level: str, folder: Path) -> QualityVerdict:
        assert reference.quality_file is not None
        self.subject.observer.begin(f"quality, {level}", None)
        return judge_quality(
            s.running.endpoint,
            self.scenario.quality,
            ReferenceAnswers.load(self.subject.root / reference.quality_file),
            level="full" if level == "full" else "screen",
            answers_path=folder / f"quality-{level}.json",
            concurrency=_lanes(s),
        )

    def _guess(self, config: ServingConfig, earlier: Sequence[TrialResult], reference: Reference) -> float:
        """Where a ramp may begin, in requests/s. Asked while no engine runs: a model's fit would disturb it."""
        control = earlier[0] if earlier else None
        if control and control.capacity and control.capacity.rate_rps > 0:
            guess_rps = control.capacity.rate_rps
        else:
            answer_ms = reference.unloaded.metrics["e2e_p50_ms"].value
            assert answer_ms is not None
            guess_rps = 1000 / answer_ms
        return self.expects([r.trial for r in earlier], config) or guess_rps

    def _evaluate(self, s: Session, earlier: Sequence[TrialResult], guess_rps: float) -> Evaluation:
        control = earlier[0] if earlier else None
        hints = Hints(guess_rps, best_rps=max((r.certain_rps for r in earlier), default=0.0) or None)
        rate = None
        if self.scenario.objective != "goodput" and self.scenario.workload.arrivals.rate is not None:
            rate = self.asked_rate(control)
            if rate is None and control is not None:
                raise UserError(
                    "workload.arrivals.rate.times_default_capacity: the default configuration could not be measured "
                    f"({control.trial.why}); give rate.rps"
                )
            rate = rate or self._times_capacity(s, hints)
        return evaluate(s, self.scenario, rate_rps=rate, seed=self._seed(SEED_TRIALS), hints=hints)

    def asked_rate(self, control: TrialResult | None) -> float | None:
        """The scenario's rate in requests/s; a relative one is read from the control's result.

        None: no rate was asked, or it is relative and the control has not been measured.
        """
        rate = self.scenario.workload.arrivals.rate
        if rate is None or rate.rps is not None:
            return rate.rps if rate else None
        if control is None:
            return None
        if control.capacity is not None:
            assert rate.times_default_capacity is not None
            return rate.times_default_capacity * control.capacity.rate_rps
        return next((run.measurement.rate_rps for run in control.runs), None)

    def _times_capacity(self, s: Session, hints: Hints) -> float:
        """A relative rate, resolved on the control itself."""
        times = self.scenario.workload.arrivals.rate
        assert times is not None
        assert times.times_default_capacity is not None
        goodput = self.scenario.model_copy(update={"objective": "goodput"})
        found = evaluate(s, goodput, rate_rps=None, seed=self._seed(SEED_TRIALS), hints=hints, prefix="capacity-")
        if found.score <= 0:
            raise UserError(
                "workload.arrivals.rate.times_default_capacity: the default configuration meets the targets at no "
                f"rate ({found.why}); give rate.rps, or relax the slo"
            )
        return times.times_default_capacity * found.score

    # -- after the search ----------------------------------------------------------------------------

    def final(self, block: int, position: int, trial: Trial, control: TrialResult) -> FinalsRun:
        """One entrant of one block, on that block's held-out seeds.

        All entrants begin where the defaults were found, whatever the search thought of them: who was scored high by
        luck must not be looked for higher.
        """
        folder = self._folder(f"{trial.number:03d}/final-{block}")
        seed = self._seed(SEED_FINALS + 100 * block)
        blank = FinalsRun(
            block=block, position=position, trial=trial.number, seed=seed, score=0.0, capacity=None, runs=()
        )

        def measure() -> FinalsRun:
            with session(self.subject, self.config(trial), folder) as s:
                s.warm_up(seed + 99)
                hints = Hints(control.trial.score or trial.score or 1.0)
                rate = self.asked_rate(control)
                found = evaluate(s, self.scenario, rate_rps=rate, seed=seed, hints=hints)
                score = found.score if found.slo_violation <= 0 else 0.0
                return blank.model_copy(update={"score": score, "capacity": found.capacity, "runs": found.runs})

        try:
            return self._until_not_void(measure, folder)[0]
        except TrialInfeasible as err:
            self.subject.observer.note(f"  {str(err).splitlines()[0]}")
            return blank

    def full_quality(self, trial: Trial, reference: Reference) -> QualityVerdict:
        """Every item of every task."""
        folder = self._folder(f"{trial.number:03d}")
        try:
            with session(self.subject, self.config(trial), folder / "quality") as s:
                return self._judge_quality(s, reference, "full", folder)
        except TrialInfeasible as err:
            return QualityVerdict(
                level="full", passed=False, agreement=None, tasks=(), violation=1.0, reasons=(str(err).splitlines()[0],)
            )

    def certify(self, trial: Trial, rate_rps: float, attempt: int) -> Certification:
        """Parts of ``budget.certify_s`` on one engine and fresh traffic, until the verdict on all of them is in."""
        folder = self._folder(f"{trial.number:03d}/certify-{attempt}")
        seconds = self.scenario.budget.certify_s / CERTIFY_PARTS

        def measure() -> Certification:
            runs: list[Run] = []
            observed: list[Observed] = []
            with session(self.subject, self.config(trial), folder) as s:
                s.warm_up(self._seed(SEED_WARMUP))
                for part in range(CERTIFY_PARTS):
                    seed = self._seed(SEED_CERTIFY + CERTIFY_PARTS * attempt + part)
                    loaded = s.hold(rate_rps, seconds, seed, f"hold-{part}", until_certain=False)
                    verdict = judge(loaded.observed, self.scenario.slo.alpha, observed)
                    observed.append(loaded.observed)
                    runs.append(recorded_run(loaded, s).model_copy(update={"verdict": verdict}))
                    self.subject.observer.note(f"  part {part + 1} of {CERTIFY_PARTS}: {verdict.outcome}")
                    if verdict.outcome != "UNDECIDED":
                        break
            return Certification(trial=trial.number, rate_rps=rate_rps, run=runs[-1], earlier=tuple(runs[:-1]))

        return self._until_not_void(measure, folder)[0]

    # -- shared --------------------------------------------------------------------------------------

    def config(self, trial: Trial) -> ServingConfig:
        return ServingConfig(self.space.engine, trial.knobs)

    def _seed(self, offset: int) -> int:
        return self.scenario.workload.seed * SEEDS_PER_WORKLOAD_SEED + offset

    def _folder(self, name: str) -> Path:
        return self.subject.root / "trials" / name

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.subject.root))

    def _until_not_void(self, measure: Callable[[], R], folder: Path) -> tuple[R, int]:
        """``measure``'s result and how often it was void before. A void run's records are thrown away."""
        attempts = self.scenario.budget.void_retries + 1
        last = TrialVoid("never tried")
        for attempt in range(attempts):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                return measure(), attempt
            except TrialVoid as err:
                last = err
                self.subject.observer.note(f"  void, repeated: {err}")
        raise type(last)(
            f"{folder}: void {attempts} times in a row: {last}. Nothing recorded is lost: go on with --resume"
        ) from last


def _lanes(s: Session) -> int:
    """Quality questions asked at once: as many as the engine decodes together."""
    slots = s.plan.config.knobs.get("slots", 8)
    return int(slots) if isinstance(slots, int) else 8
