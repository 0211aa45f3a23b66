"""By the wall clock over HTTP, and in virtual time: the same schedule gets the same latencies.

On a slow card, so that the millisecond which HTTP takes is small beside what the law says: test_realtime.py compares
the two without HTTP, to the nanosecond.
"""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import wasserstein_distance

from harness.bench import session
from harness.engines.base import ResolvedModel
from harness.engines.simulated.adapter import Simulated, law
from harness.engines.simulated.replay import requests_of
from harness.engines.simulated.virtual import serve
from harness.errors import TrialVoid
from harness.host import limits
from harness.observe import latencies_ms
from harness.subject import Subject
from scenarios.load import load
from scenarios.spec import Scenario
from scenarios.words import Words, candidates
from scenarios.workload import hold

pytestmark = pytest.mark.alone

AGREEMENT = 0.03
TRIES = 4  # a machine that is busy with something else makes a run void
SECONDS = 12.0


class Silent:
    def begin(self, what, seconds): ...
    def live(self, counters): ...
    def note(self, line): ...


def scenario_of(name, **workload):
    document = load(name).to_dict()
    document["workload"].update(workload)
    document["engine"]["accelerator"] = "rtx4090"
    document["budget"]["warmup_s"] = 0
    return Scenario.model_validate(document)


def served_over_http(scenario, knobs, rate_rps, folder):
    """Latencies in ms, in order of the schedule, and the schedule; skips where the machine is too busy to tell."""
    model = ResolvedModel(scenario.model, scenario.model.label, reference_variant="")
    words = replace(Words.build(candidates(), None), exact=True)
    subject = Subject(scenario, Simulated(), "simulated", model, limits(), folder, Silent(), words=words)
    config = subject.space().complete(knobs)
    schedule = hold(scenario.workload, words, rate_rps=rate_rps, duration_s=SECONDS, seed=3)
    why = ""
    for attempt in range(TRIES):
        with session(subject, config, folder / f"{attempt}") as s:
            try:
                loaded = s.hold(rate_rps, SECONDS, 3, "hold", until_certain=False)
            except TrialVoid as void:
                why = str(void).splitlines()[0]
                continue
            late_ms = 1e3 * s.subject.engine.metrics(s.running.endpoint)["simulated_latest_seconds"]
        if late_ms > 5:
            why = f"a step was {late_ms:.0f} ms late"
            continue
        records = pq.read_table(loaded.folder / "requests.parquet").sort_by("index")
        assert records.num_rows == len(schedule.requests)
        assert set(records["error"].to_pylist()) == {None}
        return latencies_ms(records, {}), schedule, law(scenario.engine, model, config)
    pytest.skip(f"this machine is too busy: {why}")


def distance(ours_ms, theirs_ms):
    """Wasserstein's, relative to the mean: how far one distribution is from the other, wherever they differ."""
    ours_ms, theirs_ms = (np.asarray(ms, float)[~np.isnan(ms)] for ms in (ours_ms, theirs_ms))
    return wasserstein_distance(ours_ms, theirs_ms) / theirs_ms.mean()


@pytest.mark.parametrize(
    ("scenario", "knobs", "rate_rps"),
    [
        pytest.param(
            scenario_of("simulated-h100-chat", output_tokens={"distribution": "uniform", "min": 20, "max": 60}),
            {"max_num_batched_tokens": 2048},
            4.0,
            id="chunked prompts",
        ),
        pytest.param(
            scenario_of(
                "simulated-h100-rag",
                shared_prefix={"tokens": 2000, "pool": 3, "reuse": 1.0},
                prompt_tokens={"distribution": "uniform", "min": 500, "max": 3000},
                output_tokens={"distribution": "uniform", "min": 20, "max": 60},
            ),
            {"max_num_seqs": 8},
            3.0,
            id="shared prefixes, two replicas, a queue",
        ),
    ],
)
def test_the_same_schedule_has_the_same_latencies(tmp_path, scenario, knobs, rate_rps):
    over_http, schedule, the_law = served_over_http(scenario, knobs, rate_rps, tmp_path)
    requests = requests_of(schedule, scenario.workload)
    virtual = serve(the_law, requests)
    expected = {
        "ttft": 1e3 * (virtual.first_token_s - requests.arrival_s),
        "tpot": 1e3 * virtual.tpot_s,
        "e2e": 1e3 * (virtual.done_s - requests.arrival_s),
    }
    differences = {metric: float(distance(over_http[metric], wanted)) for metric, wanted in expected.items()}
    # Of TTFT, one request that just misses a step moves any percentile by the step: the distance alone tells.
    for metric, q in itertools.product(("tpot", "e2e"), (50, 95)):
        ours, theirs = (float(np.nanpercentile(of[metric], q)) for of in (over_http, expected))
        differences[f"{metric} P{q}"] = abs(ours / theirs - 1)
    print(differences)
    assert max(differences.values()) <= AGREEMENT, differences
