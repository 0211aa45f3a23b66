"""Memory, seconds per step and cold starts against arithmetic done by hand."""

from dataclasses import replace

import numpy as np
import pytest

from harness.engines.simulated import hardware
from harness.engines.simulated.law import GIB, Law, Settings, plan_memory
from harness.engines.simulated.steps import StepLaw, graph_size, step_seconds
from harness.errors import ConfigurationImpossible
from scenarios.errors import UserError

H100, A100, L40S = (hardware.accelerator(name) for name in ("h100", "a100", "l40s"))
SMALL, MIDDLE, LARGE = (hardware.model(name) for name in ("1b", "8b", "70b"))


def seconds(law, *, given=0, tokens=0, sampled=0, context=0, pairs=0, speculating=0, draft_tokens=0):
    return step_seconds(law, draft_tokens, np.array([given, tokens, sampled, context, pairs, speculating], np.int64))


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(UserError, match="h100, a100, l40s, rtx4090, laptop-cpu"):
        hardware.accelerator("h1000")
    with pytest.raises(UserError, match="1b, 8b, 70b"):
        hardware.model("9b")


@pytest.mark.parametrize("name", hardware.models())
def test_a_models_parts_add_up_to_its_parameters(name):
    """Attention, gated feed-forward and two norms a layer; embedding, last norm and, untied, a head."""
    m = hardware.model(name)
    attention = m.hidden * m.head_dim * (2 * m.attention_heads + 2 * m.kv_heads)
    layer = attention + 3 * m.hidden * m.intermediate + 2 * m.hidden
    assert m.layers * layer + m.hidden == m.layer_parameters
    assert m.draft_parameters == pytest.approx(layer, rel=0.01)


def test_a_token_of_8b_keeps_128_kib():
    assert MIDDLE.kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2 == 128 * 1024


def test_memory_is_what_the_share_leaves_after_weights_and_the_largest_step():
    plan = plan_memory(Settings(), H100, MIDDLE, 8192)
    assert plan.weights_bytes == 2 * MIDDLE.parameters
    assert plan.activations_bytes == 8192 * 2 * (2 * 14_336 + 4 * 4096) + 256 * 128_256 * 10
    left = 0.9 * H100.memory_bytes - plan.weights_bytes - plan.activations_bytes
    assert plan.blocks == int(left // (16 * 128 * 1024))
    assert plan.kv_cache_bytes == plan.blocks * plan.block_bytes
    assert plan.starts
    assert f"{left / GIB:.1f} left for the KV cache" in plan.explained


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"kv_cache_dtype": "fp8"}, 2.0),
        ({"weights": "int4"}, 1.1),
        ({"gpu_memory_utilization": 0.95}, 1.05),
        ({"tensor_parallel": 2, "accelerators": 2}, 2.0),
        ({"max_num_batched_tokens": 2048}, 1.005),
    ],
)
def test_what_gives_the_cache_more_room(change, more):
    before = plan_memory(Settings(), H100, MIDDLE, 8192)
    after = plan_memory(replace(Settings(), **change), H100, MIDDLE, 8192)
    assert after.blocks > more * before.blocks


@pytest.mark.parametrize(
    ("change", "device", "shape", "context", "words"),
    [
        ({}, H100, LARGE, 4096, "not enough memory for one sequence: 4096 tokens need .* GiB of weights"),
        ({"weights": "fp8"}, A100, MIDDLE, 4096, "weights fp8: a100 has no FP8 units"),
        ({"kv_cache_dtype": "fp8"}, A100, MIDDLE, 4096, "kv_cache_dtype fp8: a100 has no FP8 units"),
        ({"tensor_parallel": 2}, H100, MIDDLE, 4096, "tensor_parallel 2 does not divide the 1 accelerators"),
        ({"tensor_parallel": 16, "accelerators": 16}, H100, MIDDLE, 4096, "does not divide 8 key-value heads"),
        (
            {"max_num_batched_tokens": 128},
            H100,
            MIDDLE,
            4096,
            "max_num_batched_tokens 128 must be at least max_num_seqs",
        ),
        ({"enable_chunked_prefill": False}, H100, MIDDLE, 8193, "a prompt is taken whole"),
        ({}, H100, MIDDLE, 200_000, "8b was made for 131072"),
        ({"gpu_memory_utilization": 0.99}, H100, MIDDLE, 4096, "leaves too little beside it on h100"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(change, device, shape, context, words):
    with pytest.raises(ConfigurationImpossible, match=words):
        plan_memory(replace(Settings(), **change), device, shape, context)


def test_the_largest_context_that_fits_is_exactly_what_the_blocks_hold():
    device = hardware.accelerator("rtx4090")
    room = plan_memory(Settings(), device, MIDDLE, 16).blocks * 16
    assert plan_memory(Settings(), device, MIDDLE, room).blocks * 16 == room
    with pytest.raises(ConfigurationImpossible, match="not enough memory"):
        plan_memory(Settings(), device, MIDDLE, room + 1)


def plans(device, **settings):
    """Of every share from 0.80 to 0.99 that the planner accepts."""
    for percent in range(80, 100):
        try:
            yield plan_memory(Settings(gpu_memory_utilization=percent / 100, **settings), device, MIDDLE, 4096)
        except ConfigurationImpossible:
            return


@pytest.mark.parametrize("device", [H100, A100, L40S, hardware.accelerator("rtx4090")], ids=lambda d: d.name)
def test_some_plans_that_fit_on_paper_die_at_launch_but_only_near_the_limit(device):
    greedy = list(plans(device, max_num_batched_tokens=16_384, max_num_seqs=512))
    died = [plan for plan in greedy if not plan.starts]
    assert greedy[0].starts
    assert died
    assert died == greedy[-len(died) :]
    assert min(plan.expected_bytes for plan in died) > 0.91 * device.memory_bytes
    modest = list(plans(device, max_num_batched_tokens=2048, max_num_seqs=32))
    assert sum(not plan.starts for plan in modest) <= 1


def test_a_decode_step_reads_the_weights_and_a_long_prompt_is_arithmetic():
    """8B in 16 bits on an H100: 3.35 TB/s at 0.8 of the peak, 989.4 TFLOP/s at 0.6."""
    steps = Law(Settings(), H100, MIDDLE, 8192).steps
    weights = 2 * MIDDLE.layer_parameters / (0.8 * 3.35e12)
    head = 2 * MIDDLE.head_parameters / (0.8 * 3.35e12)
    context = 1000 * 128 * 1024 / (0.8 * 3.35e12)
    expected = 0.0006 + 4e-6 + weights + head + context
    assert seconds(steps, given=1, tokens=1, sampled=1, context=1000) == pytest.approx(expected)
    flops = 2 * MIDDLE.layer_parameters * 8192
    attention = 4 * 32 * 32 * 128 * 33_558_528
    expected = 0.0006 + 4e-6 + head + 8192 * 128 * 1024 / (0.8 * 3.35e12) + (flops + attention) / (0.6 * 989.4e12)
    assert 33_558_528 == 8192 * 8193 // 2
    assert seconds(steps, given=1, tokens=8192, sampled=1, context=8192, pairs=33_558_528) == pytest.approx(expected)


def test_batches_are_padded_to_a_captured_graph_and_without_one_launching_takes_its_time():
    assert [graph_size(n) for n in (1, 2, 3, 5, 9, 250, 257, 500)] == [1, 2, 4, 8, 16, 256, 272, 512]
    law = StepLaw(overhead_s=0.0, launch_s=5.0, largest_graph=16, token_s=1.0)
    assert seconds(law, tokens=3) == 4.0
    assert seconds(law, tokens=9) == 16.0
    assert seconds(law._replace(token_s=0.125), tokens=16) == 2.0
    assert seconds(law, tokens=17) == 17.0  # no graph, no padding, launches hidden behind the work
    assert seconds(law._replace(largest_graph=0), tokens=3) == 5.0
    eager = Law(Settings(enforce_eager=True), H100, SMALL, 4096).steps
    captured = Law(Settings(), H100, SMALL, 4096).steps
    assert eager.largest_graph == 0
    assert seconds(eager, tokens=1) > 2 * seconds(captured, tokens=1)


def test_two_devices_halve_the_reading_and_talk_twice_a_layer():
    one = Law(Settings(accelerators=2), H100, MIDDLE, 8192)
    two = Law(Settings(accelerators=2, tensor_parallel=2), H100, MIDDLE, 8192)
    assert (one.replicas, two.replicas) == (2, 1)
    assert two.steps.weights_s == pytest.approx(one.steps.weights_s / 2)
    assert two.steps.token_s == pytest.approx(one.steps.token_s / 2)
    assert two.steps.context_s == pytest.approx(one.steps.context_s / 2)
    assert one.steps.exchange_s == one.steps.exchange_token_s == 0
    assert two.steps.exchange_s == pytest.approx(64 * 8e-6)
    assert two.steps.exchange_token_s == pytest.approx(64 * 4096 * 2 / 450e9)


def test_fewer_bits_read_faster_and_only_fp8_computes_faster():
    of = {w: Law(Settings(weights=w), H100, MIDDLE, 8192).steps for w in ("bf16", "fp8", "int4")}
    assert of["int4"].weights_s < 0.3 * of["bf16"].weights_s
    assert of["fp8"].weights_s == pytest.approx(of["bf16"].weights_s / 2)
    assert of["fp8"].token_s == pytest.approx(of["bf16"].token_s * 989.4 / 1978.9)
    assert of["int4"].token_s == pytest.approx(of["bf16"].token_s / 0.75)


def test_a_draft_costs_a_round_for_every_token_that_it_guesses():
    law = StepLaw(overhead_s=0.0, draft_s=1.0, draft_token_s=0.3)
    assert seconds(law, given=2, speculating=2, draft_tokens=3) == 3.0
    assert seconds(law, given=5, speculating=5, draft_tokens=3) == pytest.approx(4.5)
    assert seconds(law, given=5, speculating=0, draft_tokens=3) == 0.0


def test_a_cold_start_loads_compiles_and_captures_and_a_warm_one_does_not_compile():
    law = Law(Settings(), H100, MIDDLE, 8192)
    assert law.cold_start_s - law.start_s(already_compiled=True) == law.compile_s == 8 + 0.5 * 32
    fewer_bytes = Law(Settings(weights="fp8"), H100, MIDDLE, 8192)
    assert law.cold_start_s - fewer_bytes.cold_start_s == pytest.approx(MIDDLE.layer_parameters / 2.0e9)
    eager = Law(Settings(enforce_eager=True), H100, MIDDLE, 8192)
    assert eager.compile_s == 0
    assert law.start_s(already_compiled=True) > eager.cold_start_s
    assert law.compile_key != eager.compile_key
    assert law.compile_key == Law(Settings(gpu_memory_utilization=0.8, max_num_seqs=8), H100, MIDDLE, 8192).compile_key


def test_every_pair_of_device_and_model_that_fits_has_a_law_with_plausible_steps():
    """One token of one sequence takes one to three times what reading the layers at the full peak would."""
    for name in hardware.accelerators():
        for size in hardware.models():
            device, shape = hardware.accelerator(name), hardware.model(size)
            try:
                law = Law(Settings(), device, shape, 2048)
            except ConfigurationImpossible:
                assert 2 * shape.parameters > 0.5 * device.memory_bytes
                continue
            least = 2 * shape.layer_parameters / device.memory_bytes_per_s
            assert least < seconds(law.steps, given=1, tokens=1, sampled=1, context=100) < 3 * least
