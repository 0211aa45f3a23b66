"""The server's figures beside the client's: a real load on a server that counts, and one that counts too late."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from harness.errors import TrialVoid
from harness.measurement import Measurement
from harness.server_view import SAMPLE_EVERY_S, Sampler, server_view

sys.path.insert(0, str(Path(__file__).parent))
from telling import RATE_RPS, Telling, running, subject_of


def held(root, late_s, seconds=5.0, engine=None):
    with running(subject_of(root, engine=engine), late_s) as s, contextlib.suppress(TrialVoid):
        # a busy machine is no reason to fail: what was counted is true all the same
        s.hold(RATE_RPS, seconds, seed=1, name="hold", until_certain=False)
    measured = Measurement.model_validate_json((root / "engine/hold/measurement.json").read_bytes())
    return measured, s.subject.observer.notes


@pytest.mark.alone
def test_on_a_server_that_counts_from_the_arrival_both_agree(tmp_path):
    measured, notes = held(tmp_path, late_s=0.0)
    view = measured.server
    assert view.requests == view.client_requests == measured.n_sent
    assert view.ttft_mean_ms >= 20
    assert view.client_ttft_mean_ms - view.ttft_mean_ms >= 0
    assert view.client_e2e_mean_ms - view.e2e_mean_ms >= 0
    assert view.prefix_hit_share == 0.25
    assert view.preemptions == 0, "two were counted before"
    assert view.running_peak is not None
    assert view.samples >= 1
    assert (view.waiting_peak, view.kv_usage_peak, view.accepted_share) == (None, None, None), "it does not tell"
    if measured.audit.void_reasons:
        pytest.skip(f"agreement is not judged on a disturbed machine: {measured.audit.void_reasons}")
    assert view.client_ttft_mean_ms - view.ttft_mean_ms < 3
    assert view.disagreements == ()
    assert notes == []


@pytest.mark.alone
def test_what_waits_before_it_is_counted_is_told(tmp_path):
    measured, notes = held(tmp_path, late_s=0.25, seconds=3.0)
    view = measured.server
    assert view.client_ttft_mean_ms - view.ttft_mean_ms == pytest.approx(250, abs=100)
    assert [line.split(",")[0] for line in view.disagreements] == ["TTFT", "end to end"]
    assert "were spent between them: its HTTP front end, or the network" in view.disagreements[0]
    assert notes == [f"  {line}" for line in view.disagreements]


class TestComparison:
    NAMES = Telling.server_names

    def view(self, records, n, ttft_s, e2e_s):
        after = {
            "time_to_first_token_seconds_sum": n * ttft_s,
            "time_to_first_token_seconds_count": float(n),
            "e2e_request_latency_seconds_sum": n * e2e_s,
            "e2e_request_latency_seconds_count": float(n),
        }
        return server_view(self.NAMES, {}, after, [], records, stream=True)

    @pytest.fixture
    def records(self):
        """Thirty answers of four tokens: sent a millisecond late, the first token after 100 ms, the last after 160."""
        due_ms = 50 * np.arange(30)
        stamps = {"t_send_ns": due_ms + 1, "t_first_ns": due_ms + 101, "t_last_ns": due_ms + 161}
        columns = {name: pa.array((ms * 1e6).astype(int)) for name, ms in stamps.items()}
        chunks = pa.array([[1, 2, 3, 4]] * 30, pa.list_(pa.int64()))
        return pa.table(
            {**columns, "error": pa.nulls(30, pa.string()), "output_tokens": pa.array([4] * 30), "chunk_ns": chunks}
        )

    def test_means_are_those_of_the_stamps(self, records):
        view = self.view(records, 30, 0.1, 0.16)
        assert (view.client_ttft_mean_ms, view.client_tpot_mean_ms, view.client_e2e_mean_ms) == (100, 20, 160)
        assert (view.ttft_mean_ms, view.tpot_mean_ms, view.e2e_mean_ms) == pytest.approx((100, None, 160))
        assert view.disagreements == ()

    def test_the_larger_of_two_bounds_counts(self, records):
        """5 % of a TTFT of 100 ms; 3 ms where 5 % are less."""
        for server_ms, flagged in ((96.0, False), (94.0, True), (104.0, False), (106.0, True)):
            view = self.view(records, 30, server_ms / 1e3, 0.16)
            assert bool(view.disagreements) is flagged, server_ms
            assert all("in its own clock" in line for line in view.disagreements if server_ms > 100)
        faster = {"t_first_ns": 21, "t_last_ns": 41}
        for name, ms in faster.items():
            stamps = pa.array([int((50 * i + ms) * 1e6) for i in range(30)])
            records = records.set_column(records.schema.get_field_index(name), name, stamps)
        for server_ms, flagged in ((17.1, False), (16.9, True), (22.9, False), (23.1, True)):
            assert bool(self.view(records, 30, server_ms / 1e3, 0.04).disagreements) is flagged, server_ms

    def test_others_on_the_same_server_are_told(self, records):
        view = self.view(records, 37, 0.1, 0.16)
        assert view.disagreements == (
            "the server finished 37 requests, 30 were ours: others use it, so its figures are not of this run alone",
        )

    def test_few_requests_and_cut_ones_are_not_compared(self, records):
        assert self.view(records.slice(0, 19), 19, 9.0, 9.0).disagreements == ()
        cancelled = records.set_column(
            records.schema.get_field_index("error"), "error", pa.array(["cancelled", *[None] * 29])
        )
        assert self.view(cancelled, 30, 9.0, 9.0).disagreements == ()

    def test_a_server_that_tells_nothing_is_not_doubted(self, records):
        view = server_view(self.NAMES, {}, {"up": 1.0}, [], records, stream=False)
        assert (view.requests, view.ttft_mean_ms, view.client_ttft_mean_ms, view.disagreements) == (
            None,
            None,
            None,
            (),
        )
        assert view.client_e2e_mean_ms == 160


@pytest.mark.alone
def test_an_engine_whose_names_are_not_known_is_not_asked(tmp_path):
    class Silent(Telling):
        server_names = None

    measured, _ = held(tmp_path, late_s=0.0, seconds=1.0, engine=Silent())
    assert measured.server is None
    assert measured.telemetry.engine_metrics["prefix_cache_hits_total"] == 4 * measured.n_sent


@pytest.mark.alone
def test_what_a_server_counted_before_it_could_be_asked_is_nobodys(tmp_path):
    """Its counters since it began would pass for this run's."""

    class Shy(Telling):
        asked = 0

        def metrics(self, endpoint):
            self.asked += 1
            return {} if self.asked == 1 else super().metrics(endpoint)

    measured, _ = held(tmp_path, late_s=0.0, seconds=1.0, engine=Shy())
    assert measured.server is None
    assert measured.telemetry.engine_metrics == {}


def test_requests_that_come_evenly_are_met_at_every_point_of_their_answers():
    """Four a second, each busy for its first 60 ms: of looks every 2 s all find it so, or none."""
    looks_s = [0.0]

    class Over:
        def wait(self, seconds):
            looks_s.append(looks_s[-1] + seconds)
            return len(looks_s) > 2000

    sampler = Sampler(dict)
    sampler._over = Over()
    sampler._sample()
    assert np.mean([look_s % 0.25 < 0.06 for look_s in looks_s]) == pytest.approx(0.24, abs=0.03)
    assert looks_s[-1] / 2000 == pytest.approx(SAMPLE_EVERY_S, rel=0.02)
