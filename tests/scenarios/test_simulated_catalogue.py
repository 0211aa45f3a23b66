"""The simulated scenarios send what they say: arrivals and lengths have the statistics of the traces they name."""

import math

import numpy as np
import pytest
from scipy import stats

from scenarios.load import catalogue, load
from scenarios.spec import Scenario
from scenarios.workload import hold

SIMULATED = sorted(name for name in catalogue() if name.startswith("simulated-"))
N = 2500
SEED = 7
Z = 3.5  # of a share's binomial error; two quantiles of two lengths of two scenarios are looked at

AZURE_2023 = {  # Patel et al., Splitwise (ISCA 2024): the traces AzureLLMInferenceTrace_conv and _code
    "simulated-h100-chat": {"gap_cv": 1.09, "prompt_tokens": (1020, 4083), "output_tokens": (129, 451)},
    "simulated-h100-code": {"gap_cv": 13.2, "prompt_tokens": (1469, 7315), "output_tokens": (13, 90)},
}


def requests(scenario, words):
    return hold(scenario.workload, words, rate_rps=10, duration_s=N / 10, seed=SEED).requests


@pytest.mark.parametrize("name", SIMULATED)
def test_there_are_enough_knobs_and_one_is_conditional(name):
    knobs = load(name).search.knobs
    assert len(knobs) >= 8
    assert {"speculation", "speculative_tokens"} <= set(knobs)


@pytest.mark.parametrize("name", SIMULATED)
def test_targets_are_absolute_and_the_ramp_is_long_enough_to_see_a_miss(name):
    scenario = load(name)
    assert scenario.targets_are_absolute
    waits_ms = [t.target_ms for metric, t in scenario.targets.items() if not metric.endswith("tpot")]
    assert scenario.budget.ramp_s >= 2 * max(waits_ms) / 1000


def test_five_of_them():
    assert {f"simulated-h100-{kind}" for kind in ("chat", "rag", "code", "agents", "batch")} == set(SIMULATED)


@pytest.mark.parametrize("length", ["prompt_tokens", "output_tokens"])
@pytest.mark.parametrize("name", AZURE_2023)
def test_lengths_have_the_median_and_the_p95_of_the_trace(words, name, length):
    """The share of lengths at or below the trace's quantile is that quantile's, within its binomial error."""
    drawn = np.array([getattr(r, length) for r in _lone(load(name), words)])
    for q, quantile in zip((0.5, 0.95), AZURE_2023[name][length], strict=True):
        error = math.sqrt(q * (1 - q) / len(drawn))
        assert abs(np.mean(drawn < quantile) + np.mean(drawn == quantile) / 2 - q) <= Z * error


def _lone(scenario, words):
    """At a regular pace, so that as many come as are asked for."""
    document = scenario.to_dict()
    document["workload"]["arrivals"] = {"process": "constant"}
    return requests(Scenario.model_validate(document), words)


@pytest.mark.parametrize("name", AZURE_2023)
def test_gaps_have_the_coefficient_of_variation_of_the_trace(words, name):
    """The sample's second moment has the error of a gamma's: its fourth moment is known."""
    document = load(name).to_dict()
    document["workload"] |= {"prompt_tokens": {"mean": 1}, "output_tokens": {"mean": 2}}
    n = 100_000
    sent = hold(Scenario.model_validate(document).workload, words, rate_rps=1000, duration_s=n / 1000, seed=SEED)
    gaps = np.diff([0.0, *(r.t_int_ns / 1e9 for r in sent.requests)])
    cv = AZURE_2023[name]["gap_cv"]
    shape = cv**-2
    assert abs(np.mean(gaps) * 1000 - 1) <= Z * cv / math.sqrt(n)
    second = np.mean(gaps**2) / np.mean(gaps) ** 2 / (1 + cv**2)
    kurtosis = (shape + 2) * (shape + 3) / (shape * (shape + 1))
    assert abs(second - 1) <= Z * math.sqrt((kurtosis - 1) / n)
    if shape > 0.5:  # gaps below a nanosecond are rounded to none where most are so short
        assert stats.kstest(gaps * 1000, stats.gamma(shape, scale=1 / shape).cdf).pvalue > 1e-3


def test_agents_share_prefixes_and_history(words):
    sent = requests(load("simulated-h100-agents"), words)
    later = [r for r in sent if r.turn > 0]
    assert 0.5 < len(later) / len(sent) < 0.85  # 3.5 turns on average: 2.5 of them are later ones
    by_place = {(r.session, r.turn): r for r in sent}
    followed = [(r, by_place[r.session, r.turn - 1]) for r in later if (r.session, r.turn - 1) in by_place]
    assert followed
    assert all(now.prompt.startswith(before.prompt) for now, before in followed)
    beginnings = {" ".join(r.prompt.split()[:1024]) for r in sent if r.turn == 0}
    first = sum(r.turn == 0 for r in sent)
    assert len(beginnings) < 0.15 * first  # six pools, and one conversation in twenty of its own


def test_retrieved_passages_are_long(words):
    prompts = np.array([r.prompt_tokens for r in _lone(load("simulated-h100-rag"), words)]) - 512
    for q, quantile in ((0.5, 6000), (0.95, 14000)):
        assert abs(np.mean(prompts < quantile) - q) <= Z * math.sqrt(q * (1 - q) / len(prompts))
