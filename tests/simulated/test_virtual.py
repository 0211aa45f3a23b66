"""Requests, and what is made of them, in virtual time."""

import numpy as np
import pytest

from harness.engines.simulated import hardware
from harness.engines.simulated.law import Law, Settings
from harness.engines.simulated.virtual import Requests, draw, serve

H100, MIDDLE = hardware.accelerator("h100"), hardware.model("8b")


def one(prompt, output):
    return Requests(np.array([1.0]), np.array([prompt]), np.array([output]), np.array([-1]), np.array([0]))


def test_one_request_takes_a_step_for_its_prompt_and_one_for_each_further_token():
    served = serve(Law(Settings(), H100, MIDDLE, 4096), one(100, 100))
    assert served.steps == 100
    assert served.done_s[0] == pytest.approx(1.0 + served.busy_s)
    assert served.tpot_s[0] == pytest.approx((served.done_s[0] - served.first_token_s[0]) / 99)
    assert served.kv_blocks_peak == 13  # of 16 tokens, for 199: the last one is never looked back at
    assert served.kv_blocks_free_at_end == served.kv_blocks


def test_what_is_too_long_is_rejected_and_what_has_one_token_has_no_time_per_token():
    law = Law(Settings(), H100, MIDDLE, 4096)
    assert np.isinf(serve(law, one(4000, 97)).done_s[0])
    assert np.isnan(serve(law, one(4000, 97)).tpot_s[0])
    short = serve(law, one(4000, 1))
    assert short.done_s[0] == short.first_token_s[0]
    assert np.isnan(short.tpot_s[0])


def test_an_engine_that_is_stopped_has_done_what_it_would_have_done_by_then():
    law = Law(Settings(), H100, MIDDLE, 8192)
    requests = draw(500, 10.0, np.random.default_rng(1))
    whole, part = serve(law, requests), serve(law, requests, until_s=20.0)
    assert np.array_equal(part.done_s[whole.done_s <= 20], whole.done_s[whole.done_s <= 20])
    assert np.isinf(part.done_s[whole.done_s > 21]).all()
    assert part.busy_s <= 21


def test_two_replicas_are_two_engines_with_every_other_request():
    requests = draw(2000, 30.0, np.random.default_rng(1))
    both = serve(Law(Settings(accelerators=2), H100, MIDDLE, 8192), requests)
    alone = Law(Settings(), H100, MIDDLE, 8192)
    for turn in (0, 1):
        fields = (requests.arrival_s, requests.prompt_tokens, requests.output_tokens, requests.prefix)
        part = serve(alone, Requests(*(f[turn::2] for f in fields), requests.prefix_tokens[turn::2]))
        assert np.array_equal(both.done_s[turn::2], part.done_s)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arrival_s": np.array([2.0, 1.0])}, "must not fall"),
        ({"prompt_tokens": np.array([1])}, "one length"),
        ({"prefix": np.array([-2, 0])}, "got -2"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(change, words):
    ones = np.ones(2, np.int64)
    given = {
        "arrival_s": np.array([1.0, 2.0]),
        "prompt_tokens": ones,
        "output_tokens": ones,
        "prefix": ones,
        "prefix_tokens": ones,
    }
    with pytest.raises(ValueError, match=words):
        Requests(**{**given, **change})


def test_drawn_requests_have_the_asked_rate_gaps_and_lengths():
    rng = np.random.default_rng(3)
    r = draw(200_000, 5.0, rng, gap_cv=2.0, prompt_tokens=(800, 1.2), output_tokens=(150, 0.8), longest_tokens=100_000)
    gaps = np.diff(r.arrival_s)
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.03)
    assert r.prompt_tokens.mean() == pytest.approx(800, rel=0.02)
    assert r.output_tokens.std() / r.output_tokens.mean() == pytest.approx(0.8, rel=0.03)
    assert (r.prefix == -1).all()
    pooled = draw(1000, 5.0, rng, prefixes=7, prefix_tokens=512, longest_tokens=4096)
    assert set(pooled.prefix) == set(range(7))
    assert (pooled.prompt_tokens > 512).all()
    assert (pooled.prompt_tokens + pooled.output_tokens).max() <= 4096


def test_a_shared_prefix_shortens_the_first_token():
    requests = draw(2000, 8.0, np.random.default_rng(2), prefixes=5, prefix_tokens=2048)
    ttft = {}
    for caching in (True, False):
        law = Law(Settings(enable_prefix_caching=caching), H100, MIDDLE, 8192)
        served = serve(law, requests)
        ttft[caching] = np.median(served.first_token_s - requests.arrival_s)
        assert (served.prefix_hit_tokens > 0) == caching
    assert ttft[True] < 0.6 * ttft[False]


def test_each_knob_moves_what_it_should():
    """Chat near saturation on one device; the law's own trade-offs, not those of a real engine."""
    requests = draw(1500, 22.0, np.random.default_rng(4))

    def run(**knobs):
        served = serve(Law(Settings(**knobs), H100, MIDDLE, 8192), requests)
        return np.percentile(served.first_token_s - requests.arrival_s, 95), np.nanpercentile(served.tpot_s, 95)

    ttft, tpot = run()
    few_ttft, few_tpot = run(max_num_seqs=32)
    assert few_ttft > 2 * ttft  # waits for a seat
    assert few_tpot < tpot
    small_ttft, small_tpot = run(max_num_batched_tokens=512)
    assert small_tpot < 0.8 * tpot  # prompts in small pieces disturb less
    assert small_ttft > ttft
    assert run(weights="fp8")[1] < 0.7 * tpot
