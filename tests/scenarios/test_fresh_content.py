"""What a prefix cache may know from one run of a launch to the next: the prefix that is shared on purpose, no more."""

from scenarios.traffic import Workload
from scenarios.words import Words, candidates
from scenarios.workload import hold, ramp, sequence
from tuners.laboratory import SEED_TRIALS, SEED_WARMUP

WORKLOAD = Workload.model_validate(
    {
        "arrivals": {"process": "poisson"},
        "shared_prefix_tokens": 32,
        "prompt_tokens": {"distribution": "fixed", "mean": 48.0},
        "output_tokens": {"distribution": "fixed", "mean": 4.0},
    }
)
WORDS = Words(candidates(), exact=True)
BLOCK = 16  # tokens of the smallest block that vLLM's cache keeps


def beginnings(schedule):
    """The tokens up to the first whole block beyond the shared prefix, of every prompt."""
    prompts = [request.messages[0].split() for request in schedule.requests]
    assert prompts
    return {" ".join(words[: 32 + BLOCK]) for words in prompts}


def test_no_run_of_a_launch_repeats_a_block_of_another():
    runs = [sequence(WORKLOAD, WORDS, n=200, seed=SEED_WARMUP)]
    for attempt in range(3):  # as tuners/evaluate.py numbers them
        seed = SEED_TRIALS + attempt
        runs.append(ramp(WORKLOAD, WORDS, start_rps=1, end_rps=20, duration_s=20, seed=seed))
        runs.append(hold(WORKLOAD, WORDS, rate_rps=10, duration_s=20, seed=seed + 10))
    seen = [beginnings(run) for run in runs]
    assert len(set().union(*seen)) == sum(map(len, seen))
    shared = {" ".join(text.split()[:32]) for begun in seen for text in begun}
    assert len(shared) == 1, "but for what the workload shares on purpose"
