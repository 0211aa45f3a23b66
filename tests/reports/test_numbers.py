"""What the report shows, worked out again with pandas and plain JSON from the files alone."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports import load_charts, records, search_charts, tables, view
from reports.quantity import number


@pytest.fixture(scope="module")
def study(study_folder):
    return records.read(study_folder)


@pytest.fixture(scope="module")
def ledger(study_folder):
    lines = (study_folder / "ledger.jsonl").read_text().splitlines()
    return {entry["step"]: entry["result"] for entry in map(json.loads, lines)}


def judged(folder, measurement):
    frame = pd.read_parquet(folder / measurement["records_path"])
    low, high = measurement["window_s"]
    frame = frame[(frame.t_int_ns >= low * 1e9) & (frame.t_int_ns < high * 1e9)].copy()
    frame["ttft"] = ((frame.t_first_ns - frame.t_int_ns) / 1e6).where(frame.error.isna(), np.inf)
    frame["tpot"] = ((frame.t_last_ns - frame.t_first_ns) / (frame.output_tokens - 1) / 1e6).where(
        frame.error.isna(), np.inf
    )
    return frame


def certification(ledger):
    return next(result for step, result in ledger.items() if step.startswith("certify/"))


@pytest.mark.parametrize("metric", ["ttft", "tpot"])
def test_the_answers_percentiles_are_those_of_the_raw_records(study, study_folder, ledger, metric):
    frame = judged(study_folder, certification(ledger)["run"]["measurement"])
    row = next(r for r in view.answer(study).rows if r.label == f"{metric.upper()} P95")

    assert row.winner.value == pytest.approx(np.percentile(frame[metric], 95, method="inverted_cdf"), rel=1e-12)
    assert row.winner.low <= row.winner.value <= row.winner.high


def test_the_answers_scores_are_means_of_the_blocks_with_students_interval(study, ledger):
    row = view.answer(study).rows[0]
    chosen = ledger["winner"]["trial"]
    for trial, shown in ((0, row.default), (chosen, row.winner)):
        scores = [r["score"] for step, r in ledger.items() if step.startswith("finals/") and r["trial"] == trial]
        low, high = stats.t.interval(0.95, len(scores) - 1, np.mean(scores), stats.sem(scores))
        assert (shown.value, shown.low, shown.high) == pytest.approx((np.mean(scores), low, high))


def test_the_gain_and_the_knobs_are_the_winners(study, ledger):
    answer = view.answer(study)

    assert answer.gain.value == ledger["winner"]["gain"]["value"]
    assert answer.headline.startswith(f"{number(answer.gain.value)}×")
    control = ledger["trial/000"]["trial"]["knobs"]
    own = ledger[f"trial/{answer.trial:03d}"]["trial"]["knobs"]
    assert answer.changed == {k: v for k, v in own.items() if control[k] != v}


def test_the_latency_curve_passes_through_the_raw_percentiles_and_ends_at_the_share_answered(
    study, study_folder, ledger
):
    frame = judged(study_folder, certification(ledger)["run"]["measurement"])
    _, note, figure = load_charts.latency_curves(study, view.answer(study))[0]
    curve = next(t for t in figure["data"] if t.get("name", "").startswith("trial"))
    failed = int(np.isinf(frame.ttft).sum())

    assert failed > 0
    assert f"{len(frame):,} requests, {failed} failed" in note
    assert curve["y"][-1] == pytest.approx(100 * (1 - failed / len(frame)))
    for x, y in list(zip(curve["x"], curve["y"], strict=True))[::40]:
        assert y == pytest.approx(100 * (frame.ttft <= x).mean())


def test_requests_over_time_shows_every_request_once(study, study_folder, ledger):
    frame = judged(study_folder, certification(ledger)["run"]["measurement"])
    _, _, figure = load_charts.over_time(study, view.answer(study))[0]
    drawn = {t["name"]: len(t["x"]) for t in figure["data"]}

    assert drawn["failed"] == np.isinf(frame.ttft).sum()
    assert drawn["request"] == np.isfinite(frame.ttft).sum()


def test_the_evidence_is_drawn_look_by_look(study, ledger):
    traces = certification(ledger)["run"]["verdict"]["slo"][0]["trace"]
    _, _, figure = load_charts.evidence(study, view.answer(study))[0]

    assert figure["data"][0]["x"] == [look["n"] for look in traces]
    assert figure["data"][0]["y"] == [look["log_e_pass"] for look in traces]
    assert figure["layout"]["shapes"][0]["y0"] == pytest.approx(np.log(20))


def test_the_trials_table_has_every_trial_with_its_score(study, ledger):
    table = tables.trials(study, view.answer(study))
    scores = [r["trial"]["score"] for step, r in ledger.items() if step.startswith("trial/")]

    assert [row[3] for row in table.rows] == [number(score) for score in scores]
    assert {len(row) for row in table.rows} == {len(table.head)}


def test_the_audit_covers_every_run(study, ledger):
    folders = [
        run["folder"] for r in ledger.values() for run in [*r.get("runs", []), *([r["run"]] if "run" in r else [])]
    ]
    assert [row[0] for row in tables.audit(study).rows] == folders


def test_every_other_trial_is_rejected_with_a_reason(study, synthetic):
    answer = view.answer(study)
    found = {r.number: r for r in tables.rejections(study, answer)}

    assert set(found) == set(range(1, 10)) - {answer.trial}
    assert all(r.why for r in found.values())
    assert found[synthetic.crashed].outcome == "did not run: out of memory"
    assert found[synthetic.crashed].log_lines
    assert any(v.startswith("quality by") for v in found[2].violated)


def test_the_share_a_knob_explains_is_that_of_an_analysis_of_variance(study, ledger):
    tried = pd.DataFrame(
        [
            {**r["trial"]["knobs"], "score": r["trial"]["score"]}
            for step, r in ledger.items()
            if step.startswith("trial/") and r["trial"]["score"] is not None
        ]
    )
    shown = {name: note for name, note, _ in search_charts.knobs(study, view.answer(study))}
    for knob in ("variant", "slots"):
        within = tried.groupby(knob).score.transform("mean")
        share = ((within - tried.score.mean()) ** 2).sum() / ((tried.score - tried.score.mean()) ** 2).sum()
        assert shown[knob].startswith(f"explains {share:.0%}")


def test_the_probes_are_all_there(study, ledger):
    figure = search_charts.probes(study)
    asked = sum(len(r["capacity"]["probes"]) for r in ledger.values() if r.get("capacity"))
    assert sum(len(t["x"]) for t in figure["data"] if t["name"] in ("held", "missed")) == asked
