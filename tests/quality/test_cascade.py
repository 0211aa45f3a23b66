"""The gate against servers whose true accuracy is known exactly."""

import json

import pytest

from harness.errors import RunFolderUnusable
from harness.quality.paired import difference_low
from harness.quality.runner import ReferenceAnswers, judge_quality, reference_answers
from scenarios.spec import QualityGate, QualityTask

ITEMS = 400


@pytest.fixture
def gate(make_jsonl):
    return QualityGate(tasks=(QualityTask(task=make_jsonl(ITEMS), margin=0.05),), screen_items=60)


def answering(wrong):
    """Right on every item but those for which ``wrong(index)``; the same words on every other prompt."""

    def answer(prompt):
        if not prompt.startswith("question"):
            return " and so it went on, as it always had"
        index = int(prompt[-4:])
        return " no idea" if wrong(index) else f" answer {index}"

    return answer


@pytest.fixture
def judge(server, gate, tmp_path):
    server.answer = answering(lambda i: i % 10 == 9)
    reference = reference_answers(server.endpoint, gate)
    assert reference.scores[0].accuracy == 0.9
    path = tmp_path / "answers.json"

    def run(wrong, level="full", to=path):
        server.answer = answering(wrong) if wrong else lambda _: "�" * 8
        return judge_quality(server.endpoint, gate, reference, level=level, answers_path=to)

    run.path = path
    run.reference = reference
    return run


def test_the_same_answers_pass_all_the_way(judge):
    verdict = judge(lambda i: i % 10 == 9)
    assert (verdict.level, verdict.passed, verdict.agreement, verdict.reasons) == ("full", True, 1.0, ())
    assert verdict.tasks[0].n == ITEMS
    assert verdict.violation == pytest.approx(-0.05 - verdict.tasks[0].difference_low)
    assert verdict.violation < 0
    saved = json.loads(judge.path.read_text())
    assert saved["verdict"]["passed"] is True
    assert len(saved["tasks"][0]["answers"]) == ITEMS


def test_broken_output_ends_at_agreement(judge, server):
    asked = len(server.bodies)
    verdict = judge(None)
    assert (verdict.level, verdict.passed, verdict.agreement) == ("agreement", False, 0.0)
    assert verdict.violation > 0
    assert len(server.bodies) - asked < 20


def test_what_is_clearly_worse_ends_at_the_screen(judge):
    verdict = judge(lambda i: i % 10 == 9 or i % 3 == 0)
    assert (verdict.level, verdict.passed) == ("screen", False)
    assert verdict.tasks[0].n == 60
    assert verdict.violation == pytest.approx(-0.05 - verdict.tasks[0].difference_high)
    assert "mine: accuracy 60.0% against the reference's 90.0% (60 items, 18 lost, 0 won)" in verdict.reasons[0]


def test_what_may_be_worse_passes_the_screen_and_fails_in_full(judge):
    slightly = lambda i: i % 10 == 9 or i % 20 == 0  # noqa: E731
    assert judge(slightly, level="screen").passed
    verdict = judge(slightly)
    assert (verdict.level, verdict.passed) == ("full", False)
    assert verdict.tasks[0].lost == ITEMS / 20
    assert "may be worse by" in verdict.reasons[0]


def test_worse_answers_give_a_greater_violation(judge):
    violations = [judge(lambda i, k=k: i % 10 == 9 or i % k == 0, level="screen").violation for k in (30, 10, 4, 2)]
    assert violations == sorted(violations)
    assert violations[0] < 0 < violations[-1]


def test_a_gate_without_tasks_still_catches_breakage(server, tmp_path):
    gate = QualityGate()
    server.answer = answering(lambda _: False)
    reference = reference_answers(server.endpoint, gate)
    to = tmp_path / "a.json"
    assert judge_quality(server.endpoint, gate, reference, level="full", answers_path=to).passed
    server.answer = lambda _: "@@@@"
    assert not judge_quality(server.endpoint, gate, reference, level="full", answers_path=to).passed


def test_the_reference_survives_its_file(judge, tmp_path):
    judge.reference.save(tmp_path / "reference.json")
    assert ReferenceAnswers.load(tmp_path / "reference.json") == judge.reference


def test_a_reference_that_was_asked_something_else_is_refused(judge, make_jsonl):
    make_jsonl(ITEMS + 1)
    with pytest.raises(ValueError, match="not asked the task mine as it is now"):
        judge(lambda _: False)


def test_a_folder_that_cannot_be_written_is_named(judge, tmp_path):
    with pytest.raises(RunFolderUnusable, match=r"absent.answers\.json: cannot write"):
        judge(lambda _: False, to=tmp_path / "absent" / "answers.json")


def test_the_error_of_a_screen_is_shared_by_its_tasks(server, make_jsonl, tmp_path):
    """Failing on any of K tasks fails the screen, so each is judged at alpha/K; a full PASS needs all of them."""
    tasks = tuple(QualityTask(task=make_jsonl(ITEMS, name), margin=0.05) for name in ("one", "other"))
    gate = QualityGate(tasks=tasks, screen_items=60, alpha=0.05)
    server.answer = answering(lambda _: False)
    reference = reference_answers(server.endpoint, gate)
    server.answer = answering(lambda i: i == 0)
    screen = judge_quality(server.endpoint, gate, reference, level="screen", answers_path=tmp_path / "a.json")
    assert [t.difference_high for t in screen.tasks] == [-difference_low(0, 1, 60, 0.025)] * 2
    full = judge_quality(server.endpoint, gate, reference, level="full", answers_path=tmp_path / "a.json")
    assert [t.difference_low for t in full.tasks] == [difference_low(1, 0, ITEMS, 0.05)] * 2
