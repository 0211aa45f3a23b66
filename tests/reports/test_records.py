import json

import pytest

from reports import records
from scenarios.errors import UserError


def test_everything_recorded_is_read_in_order(study_folder, synthetic):
    study = records.read(study_folder)

    assert [t.trial.number for t in study.trials] == list(range(10))
    assert len({f.block for f in study.finals}) == 3
    assert study.winner.outcome == "tuned"
    assert study.targets_ms == synthetic.targets_ms
    assert study.tracked["mlflow"][0] is False
    assert [r.stage for r in study.runs()][-1] == "certify"


def test_a_study_without_its_first_step_is_a_users_error(tmp_path):
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing to report"):
        records.read(tmp_path)


def test_a_folder_that_is_no_study_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="not the folder of a study"):
        records.read(tmp_path)


def test_a_ledger_of_another_version_is_a_users_error(tmp_path):
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"step": "study", "result": {"old": 1}}) + "\n")
    with pytest.raises(UserError, match="another version"):
        records.read(tmp_path)


def test_the_nearest_run_is_the_one_at_the_nearest_rate(study_folder):
    study = records.read(study_folder)
    rates = [r.rate_rps for r in study.runs() if r.trial == 0]

    assert study.nearest_run(0, max(rates) * 9).rate_rps == max(rates)
    assert study.nearest_run(0, 0.0).rate_rps == min(rates)
    assert study.nearest_run(99, 1.0) is None


def test_a_void_run_is_never_the_nearest(study_folder):
    study = records.read(study_folder)
    nearest = study.nearest_run(4, 0.0)
    void = nearest.run.model_copy(update={"verdict": nearest.run.verdict.model_copy(update={"outcome": "VOID"})})
    changed = tuple(
        t.model_copy(update={"runs": tuple(void if r.folder == void.folder else r for r in t.runs)})
        for t in study.trials
    )
    object.__setattr__(study, "trials", changed)

    assert study.nearest_run(4, 0.0).run.folder != void.folder


def test_quality_taken_over_from_an_equal_trial_is_found(study_folder):
    study = records.read(study_folder)
    borrower = study.trial(1).model_copy(update={"quality": None, "quality_from": study.trial(3).folder})
    object.__setattr__(study, "trials", tuple(borrower if t.trial.number == 1 else t for t in study.trials))

    assert study.quality(1) == study.trial(3).quality


def test_requests_of_a_lost_file_are_none(study_folder):
    measurement = records.read(study_folder).trials[0].runs[0].measurement
    assert records.requests(study_folder, measurement.model_copy(update={"records_path": "gone.parquet"})) is None
