"""The loop: reference, control, trials, finalists, certificate, winner. Every step is in the ledger once.

What a step does depends on the scenario and on earlier steps alone, so a study that was killed anywhere is
finished by running it again, and reaches the same answer. Knows nothing of how a step is measured
(laboratory.py), of reports or of trackers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel

from harness import host as hosts
from harness.engines.base import LaunchPlan
from harness.errors import ConfigurationImpossible, TrialInfeasible
from harness.ledger import Ledger, write_whole
from harness.measurement import QualityVerdict, dump
from harness.subject import Observer, Subject
from scenarios.errors import UserError
from scenarios.load import dump_yaml
from scenarios.space import SearchSpace, ServingConfig
from scenarios.spec import Scenario
from tuners import answer, select
from tuners.base import Possible, Trial, Tuner
from tuners.results import (
    ARM,
    PRESET,
    Certification,
    FinalsRun,
    Reference,
    StudyStart,
    Transferred,
    TrialResult,
    Winner,
)

CERTIFY_SHARES = (0.6, 0.45)  # of the capacity: at the capacity itself a P95 promise is a coin toss

ARM_TRIALS = 4  # times the budget's trials, at most, in the control arm: its quick failures take few seconds

AFTER_THE_SEARCH = ("finals/0/000", "winner")  # one of them is recorded first once the trials and the arm are done

T = TypeVar("T", bound=BaseModel)


class Measuring(Protocol):
    """What a study asks of its `Laboratory`."""

    subject: Subject

    def settle(self, reference: Reference) -> None: ...
    def reference(self) -> Reference: ...
    def trial(
        self, number: int, config: ServingConfig, earlier: list[TrialResult], reference: Reference
    ) -> TrialResult: ...
    def final(self, block: int, position: int, trial: Trial, control: TrialResult) -> FinalsRun: ...
    def full_quality(self, trial: Trial, reference: Reference) -> QualityVerdict: ...
    def certify(self, trial: Trial, rate_rps: float, attempt: int) -> Certification: ...
    def asked_rate(self, control: TrialResult | None) -> float | None: ...


class StudyObserver(Observer, Protocol):
    """Hears, besides what a bench says, how far the study is."""

    def progress(self, done: int, total: int) -> None: ...

    def trial(self, result: TrialResult) -> None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """How the study was asked for, for its records."""

    scenario_file: str
    command: str


@dataclass(frozen=True, slots=True)
class Proposed:
    """A configuration to try, and who proposed it (`TrialResult.origin`)."""

    config: ServingConfig
    origin: str


@dataclass(slots=True)
class Study:
    """One study in one folder. ``run`` may be called again after any interruption."""

    laboratory: Measuring
    space: SearchSpace  # as narrowed by the scenario
    tuner: Tuner
    observer: StudyObserver
    asked: Asked
    presets: Mapping[str, ServingConfig] = field(default_factory=dict)  # the engine's own: further controls
    transfer: Callable[[StudyStart], Transferred] | None = None  # reads earlier studies, once
    control_arm: Tuner | None = None  # searches again, for as many seconds as the search took

    @property
    def scenario(self) -> Scenario:
        return self.laboratory.subject.scenario

    @property
    def root(self) -> Path:
        return self.laboratory.subject.root

    def run(self) -> Winner:
        """Raises TrialVoid when the machine will not let a step be measured; nothing done is lost."""
        with Ledger(self.root / "ledger.jsonl") as ledger:
            winner = self._run(ledger)
        self._save(winner)
        return winner

    def _run(self, ledger: Ledger) -> Winner:
        start = _step(ledger, "study", StudyStart, self._start)
        if start.scenario_digest != self.scenario.digest:
            raise UserError(f"{self.root} holds a study of another scenario; choose another --run folder")
        transferred = self._transferred(ledger, start)  # before minutes are spent: it may name what is not there
        self.observer.note("reference: the defaults at the highest precision")
        reference = _step(ledger, "reference", Reference, self.laboratory.reference)
        self.laboratory.settle(reference)
        targets = self.laboratory.subject.targets
        self.observer.note(
            "targets: " + ", ".join(f"{t.metric} P{t.percentile:g} <= {t.target_ms:.0f} ms" for t in targets)
        )
        results = self._search(ledger, reference, transferred)
        if self.control_arm is not None:
            self._control_arm(ledger, results, reference, self.control_arm)
        trials = [result.trial for result in results]
        control = trials[select.CONTROL]
        best = select.finalists(trials, self.scenario.search.finalists)
        if not best and not (control.feasible and control.score):
            return _step(ledger, "winner", Winner, lambda: answer.none_feasible(self.scenario, results))
        finals = self._finals(ledger, results, [control, *best] if best else [])
        choice = select.choose(trials, finals, self.scenario.search.tie)
        chosen, quality = self._first_that_keeps_quality(ledger, trials, choice, reference)
        if chosen == select.CONTROL and not (control.feasible and control.score):
            return _step(ledger, "winner", Winner, lambda: answer.none_feasible(self.scenario, results))
        certified = self._certify(ledger, results, chosen, choice)
        evidence = answer.Evidence(
            self.scenario, results, choice, chosen, self._plan(trials[chosen]), quality, certified
        )
        return _step(ledger, "winner", Winner, lambda: answer.found(evidence))

    def _start(self) -> StudyStart:
        write_whole(self.root / "scenario.yaml", dump_yaml(self.scenario))
        subject = self.laboratory.subject
        return StudyStart(
            scenario=self.scenario.to_dict(),
            scenario_digest=self.scenario.digest,
            scenario_file=self.asked.scenario_file,
            command=self.asked.command,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            host=hosts.fingerprint(),
            engine_version=subject.engine_version,
            model_digests=dict(subject.model.digests),
            space=[
                {"name": k.name, "choices": list(k.choices), "default": k.default, "effect": k.effect, "doc": k.doc}
                for k in self.space.knobs
            ],
        )

    def _search(self, ledger: Ledger, reference: Reference, transferred: Transferred | None) -> list[TrialResult]:
        """The controls, then proposals, until the budget is spent, the goal met or the space tried."""
        results = self._recorded(ledger, "trial", 0)
        waiting = self._controls(results)
        most = sum(r.is_control for r in results) + len(waiting) + self.scenario.budget.trials
        ended = _began(ledger, f"control/{len(results):03d}", *AFTER_THE_SEARCH)
        while not ended and len(results) < most:
            number = len(results)
            if not waiting and (reason := self._enough(results)):
                self.observer.note(reason)
                break
            proposed = waiting.pop(0) if waiting else self._propose(results, transferred)
            if proposed is None:
                self.observer.note("no further configuration was found that can be planned and may answer well")
                break
            self.observer.progress(number, most)
            self.observer.note(f"trial {number:03d}: {describe(proposed.config, self.space)}")
            results.append(self._trial(ledger, f"trial/{number:03d}", proposed, results, reference))
        self.observer.progress(len(results), len(results))
        return results

    def _recorded(self, ledger: Ledger, kind: str, first: int) -> list[TrialResult]:
        """The results of ``kind`` in the ledger, as they are there: nobody is asked to propose them again."""
        found: list[TrialResult] = []
        while (step := f"{kind}/{first + len(found):03d}") in ledger:
            result = _step(ledger, step, TrialResult, _never)
            config = ServingConfig(self.space.engine, result.trial.knobs)
            self.observer.note(f"{step.replace('/', ' ')}, recorded: {describe(config, self.space)}")
            self.observer.trial(result)
            found.append(result)
        return found

    def _transferred(self, ledger: Ledger, start: StudyStart) -> Transferred | None:
        """Read once: a resumed study needs no old folder."""
        if (read := self.transfer) is None:
            return None
        found = _step(ledger, "transfer", Transferred, lambda: read(start))
        for line in (*(f"tried first: {source}" for source in found.sources), *found.notes):
            self.observer.note(line)
        return found

    def _controls(self, results: list[TrialResult]) -> list[Proposed]:
        """The controls still to be measured; none once something else was. Outside the budget.

        The defaults, and the engine's presets as far as they differ and can be planned.
        """
        if not all(r.is_control for r in results):
            return []
        found = [Proposed(self.space.default(), "defaults")]
        for name, config in self.presets.items():
            if config.digest not in {c.config.digest for c in found} and self._possible(config):
                found.append(Proposed(config, f"{PRESET}{name}"))
        tried = {r.trial.config_digest for r in results}
        return [c for c in found if c.config.digest not in tried]

    def _trial(
        self, ledger: Ledger, step: str, proposed: Proposed, earlier: list[TrialResult], reference: Reference
    ) -> TrialResult:
        def measured() -> TrialResult:
            number = int(step.rpartition("/")[2])
            result = self.laboratory.trial(number, proposed.config, earlier, reference)
            return result.model_copy(update={"origin": proposed.origin})

        result = _step(ledger, step, TrialResult, measured)
        self.observer.trial(result)
        return result

    def _control_arm(
        self, ledger: Ledger, results: list[TrialResult], reference: Reference, tuner: Tuner
    ) -> list[TrialResult]:
        """The same seconds again by another strategy, which sees the defaults' result and its own, nothing else."""
        limit_s = sum(r.trial.seconds for r in results if not r.is_control)
        most = ARM_TRIALS * self.scenario.budget.trials
        arm = self._recorded(ledger, "control", len(results))
        ended = _began(ledger, *AFTER_THE_SEARCH)
        while not ended and len(arm) < most and sum(r.trial.seconds for r in arm) < limit_s:
            number = len(results) + len(arm)
            seen = [results[select.CONTROL], *arm]
            config = tuner.ask([r.trial for r in seen], self._worth_trying(seen))
            if config is None:
                break
            self.observer.note(f"control arm, {number:03d}: {describe(config, self.space)}")
            arm.append(self._trial(ledger, f"control/{number:03d}", Proposed(config, ARM), seen, reference))
        return arm

    def _enough(self, results: list[TrialResult]) -> str | None:
        """Why no further trial is needed. From the ledger alone, so that a resumed study stops where it would have."""
        limit_s = self.scenario.budget.wall_clock_s
        paid = [r.trial.seconds for r in results if not r.is_control]
        if limit_s is not None and sum(paid) >= limit_s:
            return f"budget.wall_clock_s is spent after {len(paid)} trials"
        last = results[-1]
        passed = last.trial.feasible and all(run.verdict.outcome == "PASS" for run in last.runs)
        if self.scenario.objective == "meet" and passed:
            return f"trial {last.trial.number:03d} meets every target: nothing more was asked"
        return None

    def _propose(self, results: list[TrialResult], transferred: Transferred | None) -> Proposed | None:
        """What earlier studies found best; then the tuner's next. Only what is worth trying, and once."""
        tried = {r.trial.config_digest for r in results}
        possible = self._worth_trying(results)
        for knobs in transferred.knobs if transferred else ():
            config = ServingConfig(self.space.engine, knobs)
            if config.digest not in tried and possible(config):
                return Proposed(config, "transfer")
        asked = self.tuner.ask([r.trial for r in results], possible)
        return Proposed(asked, "") if asked else None

    def _worth_trying(self, results: list[TrialResult]) -> Possible:
        """Whether a configuration can be planned, and does not answer like one whose answers were too bad."""
        worse = {
            self.space.output_key(ServingConfig(self.space.engine, r.trial.knobs))
            for r in results
            if r.trial.state == "quality"
        }
        return lambda config: self.space.output_key(config) not in worse and self._possible(config)

    def _possible(self, config: ServingConfig) -> bool:
        """Whether a launch of ``config`` can be planned: otherwise it is known to fail, and never paid for."""
        try:
            self.laboratory.subject.plan(config)
        except ConfigurationImpossible:
            return False
        return True

    def _finals(self, ledger: Ledger, results: list[TrialResult], entrants: list[Trial]) -> list[FinalsRun]:
        """Blocks of all entrants on held-out seeds, in alternating order so that drift of the host cancels."""
        control = results[select.CONTROL]
        runs = []
        for block in range(self.scenario.budget.finalist_blocks if entrants else 0):
            order = entrants if block % 2 == 0 else entrants[::-1]
            for position, trial in enumerate(order):
                self.observer.note(f"finals, block {block + 1}: trial {trial.number:03d}")
                runs.append(
                    _step(
                        ledger,
                        f"finals/{block}/{trial.number:03d}",
                        FinalsRun,
                        lambda b=block, p=position, t=trial: self.laboratory.final(b, p, t, control),  # type: ignore[misc]
                    )
                )
        return runs

    def _first_that_keeps_quality(
        self, ledger: Ledger, trials: list[Trial], choice: select.Choice, reference: Reference
    ) -> tuple[int, QualityVerdict | None]:
        """The best finalist whose answers, on every item of every task, are no worse than the margin allows."""
        for number in choice.order:
            if reference.quality_file is None:
                return number, None
            self.observer.note(f"quality of trial {number:03d} on every item")
            verdict = _step(
                ledger,
                f"quality/{number:03d}",
                QualityVerdict,
                lambda n=number: self.laboratory.full_quality(trials[n], reference),  # type: ignore[misc]
            )
            if verdict.passed:
                return number, verdict
            self.observer.note(f"  it loses too much accuracy: {'; '.join(verdict.reasons)}")
        return select.CONTROL, None

    def _certify(
        self, ledger: Ledger, results: list[TrialResult], chosen: int, choice: select.Choice
    ) -> Certification | None:
        """At the asked rate; or, where none was, at falling shares of the capacity until one passes."""
        if self.scenario.workload.arrivals.process == "closed":
            return None
        trial = results[chosen].trial
        asked = self.laboratory.asked_rate(results[select.CONTROL])
        capacity = answer.mean_score(choice.summaries, chosen) or trial.score or 0.0
        certified: Certification | None = None
        for attempt, rate_rps in enumerate([asked] if asked else [share * capacity for share in CERTIFY_SHARES]):
            self.observer.note(f"certify trial {chosen:03d} at {rate_rps:.2f} requests/s")
            try:
                certified = _step(
                    ledger,
                    f"certify/{chosen:03d}/{attempt}",
                    Certification,
                    lambda k=attempt, r=rate_rps: self.laboratory.certify(trial, r, k),  # type: ignore[misc]
                )
            except TrialInfeasible as err:
                self.observer.note(f"  not certified: {err}")
                continue
            if certified.run.verdict.outcome == "PASS":
                break
        return certified

    def _plan(self, trial: Trial) -> LaunchPlan:
        return self.laboratory.subject.plan(ServingConfig(self.space.engine, trial.knobs))

    def _save(self, winner: Winner) -> None:
        """``winner.json``, whole or not at all. Its presence says that the study is finished."""
        write_whole(self.root / "winner.json", winner.model_dump_json(indent=2) + "\n")


def describe(config: ServingConfig, space: SearchSpace) -> str:
    """What differs from the defaults, for people."""
    default = space.default().knobs
    changed = [f"{k}={v}" for k, v in config.knobs.items() if default.get(k) != v]
    return " ".join(changed) or "the defaults"


def _step(ledger: Ledger, name: str, kind: type[T], work: Callable[[], T]) -> T:
    return kind.model_validate(ledger.once(name, lambda: dump(work())))


def _began(ledger: Ledger, *steps: str) -> bool:
    """Whether the study went on to one of ``steps``: what comes before is then as complete as it will be."""
    return any(step in ledger for step in steps)


def _never() -> TrialResult:
    raise AssertionError("a recorded step is not worked out again")
