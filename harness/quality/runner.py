"""The quality gate: a cascade of ever dearer looks at whether a configuration answers as well as the reference.

Agreement (a few texts; catches a broken engine, proves nothing: a good INT8 departs from its reference too),
then the first items of every task (fails only what is clearly worse), then all of them (passes only what is
shown to be no worse). Knows nothing of how the endpoint was started.
"""

import json
from pathlib import Path
from typing import Literal

from harness.engines.base import Endpoint
from harness.ledger import unusable
from harness.measurement import QualityComparison, QualityVerdict, Record, TaskScore
from harness.progress import Progress, silent
from harness.quality.ask import CONCURRENCY, TIMEOUT_S, complete, run_task
from harness.quality.paired import compare
from harness.quality.scoring import leading_agreement
from harness.quality.tasks import Item, Task, load_task
from scenarios.spec import QualityGate

AGREEMENT_FLOOR = 0.02
_OPENINGS = (
    "Once upon a time, there was a",
    "The most important thing about water is that",
    "To make a cup of tea, first",
    "def add(a, b):\n    return",
    "Dear Sir or Madam,\n\nI am writing to",
    "The main difference between a cat and a dog is",
    "In the year 1969, the first",
    "One, two, three, four, five, six,",
)
_AGREEMENT = tuple(
    Item(id=f"agreement-{number}", prompt=prompt, answers=(prompt,), max_tokens=24, stop=())
    for number, prompt in enumerate(_OPENINGS, start=1)
)


class ReferenceAnswers(Record):
    """What the reference said: full tasks, and its texts on the fixed openings."""

    scores: tuple[TaskScore, ...]
    agreement_texts: tuple[str, ...]

    def score(self, task: Task) -> TaskScore:
        """Raises ValueError when this task was not asked, or not with these items."""
        for score in self.scores:
            if score.task_digest == task.digest:
                return score
        raise ValueError(f"the reference was not asked the task {task.name} as it is now; ask it again")

    def save(self, path: Path) -> None:
        _write(path, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, path: Path) -> "ReferenceAnswers":
        return cls.model_validate_json(path.read_bytes())


def reference_answers(
    endpoint: Endpoint,
    gate: QualityGate,
    *,
    concurrency: int = CONCURRENCY,
    timeout_s: float = TIMEOUT_S,
    on_progress: Progress = silent,
) -> ReferenceAnswers:
    """Asks the reference everything, once per study."""
    asker = _Asker(endpoint, concurrency, timeout_s, on_progress)
    tasks = [load_task(asked.task) for asked in gate.tasks]
    return ReferenceAnswers(
        agreement_texts=asker.texts(), scores=tuple(asker.score(task, task.items) for task in tasks)
    )


def judge_quality(
    endpoint: Endpoint,
    gate: QualityGate,
    reference: ReferenceAnswers,
    *,
    level: Literal["screen", "full"],
    answers_path: Path,
    concurrency: int = CONCURRENCY,
    timeout_s: float = TIMEOUT_S,
    on_progress: Progress = silent,
) -> QualityVerdict:
    """The cascade as far as ``level``, or until it fails; every answer goes to ``answers_path``.

    Of several tasks each must pass, so the error probability of a full PASS is <= alpha without correction;
    a screen fails when any task fails, so each of K is judged at alpha/K.
    """
    asker = _Asker(endpoint, concurrency, timeout_s, on_progress)
    texts = asker.texts()
    agreement = sum(map(leading_agreement, reference.agreement_texts, texts)) / len(texts)
    scores: list[TaskScore] = []
    verdict = _agreement_verdict(agreement)
    tasks = [(load_task(asked.task), asked.margin) for asked in gate.tasks]
    if verdict.passed and tasks:
        scores = [asker.score(task, task.items[: gate.screen_items]) for task, _ in tasks]
        verdict = _verdict("screen", agreement, _compared(scores, tasks, reference, gate.alpha / len(tasks), "screen"))
        if verdict.passed and level == "full":
            rest = [asker.score(task, task.items[gate.screen_items :]) for task, _ in tasks]
            scores = [_joined(one, other) for one, other in zip(scores, rest, strict=True)]
            verdict = _verdict("full", agreement, _compared(scores, tasks, reference, gate.alpha, "full"))
    document = {
        "verdict": verdict.model_dump(mode="json"),
        "agreement_texts": texts,
        "tasks": [score.model_dump(mode="json") for score in scores],
    }
    _write(answers_path, json.dumps(document, indent=1, ensure_ascii=False))
    return verdict


class _Asker:
    """One endpoint, with how to ask it."""

    def __init__(self, endpoint: Endpoint, concurrency: int, timeout_s: float, on_progress: Progress) -> None:
        self._endpoint = endpoint
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._on_progress = on_progress

    def texts(self) -> tuple[str, ...]:
        return complete(
            self._endpoint,
            _AGREEMENT,
            concurrency=self._concurrency,
            timeout_s=self._timeout_s,
            on_progress=self._on_progress,
            what="agreement",
        )

    def score(self, task: Task, items: tuple[Item, ...]) -> TaskScore:
        return run_task(
            self._endpoint,
            task,
            items,
            concurrency=self._concurrency,
            timeout_s=self._timeout_s,
            on_progress=self._on_progress,
        )


def _compared(
    scores: list[TaskScore],
    tasks: list[tuple[Task, float]],
    reference: ReferenceAnswers,
    alpha: float,
    level: Literal["screen", "full"],
) -> tuple[QualityComparison, ...]:
    return tuple(
        compare(score, reference.score(task), margin=margin, alpha=alpha, level=level)
        for score, (task, margin) in zip(scores, tasks, strict=True)
    )


def _agreement_verdict(agreement: float) -> QualityVerdict:
    passed = agreement >= AGREEMENT_FLOOR
    reason = f"its texts agree with the reference's to {agreement:.0%}, at least {AGREEMENT_FLOOR:.0%} are needed"
    return QualityVerdict(
        level="agreement",
        passed=passed,
        agreement=agreement,
        tasks=(),
        violation=AGREEMENT_FLOOR - agreement,
        reasons=() if passed else (f"{reason}: the engine's output is broken",),
    )


def _verdict(
    level: Literal["screen", "full"], agreement: float, tasks: tuple[QualityComparison, ...]
) -> QualityVerdict:
    bounds = [task.difference_low if level == "full" else task.difference_high for task in tasks]
    return QualityVerdict(
        level=level,
        passed=all(task.passed for task in tasks),
        agreement=agreement,
        tasks=tasks,
        violation=max(-task.margin - bound for task, bound in zip(tasks, bounds, strict=True)),
        reasons=tuple(_reason(task, level) for task in tasks if not task.passed),
    )


def _reason(task: QualityComparison, level: Literal["screen", "full"]) -> str:
    said = (
        f"{task.task}: accuracy {task.accuracy:.1%} against the reference's {task.reference_accuracy:.1%} "
        f"({task.n} items, {task.lost} lost, {task.won} won)"
    )
    if level == "screen":
        return f"{said}: worse by at least {-task.difference_high:.1%}, {task.margin:.1%} is tolerated"
    return f"{said}: may be worse by {-task.difference_low:.1%}, {task.margin:.1%} is tolerated"


def _joined(first: TaskScore, rest: TaskScore) -> TaskScore:
    return first.model_copy(
        update={
            "item_ids": first.item_ids + rest.item_ids,
            "correct": first.correct + rest.correct,
            "answers": first.answers + rest.answers,
        }
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as err:
        raise unusable(path, err) from err
