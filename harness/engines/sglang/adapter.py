"""SGLang, on CUDA. It runs in an environment of its own (`engine.python`, or what `autotune engines install` made).

Knows nothing of load.
"""

from collections.abc import Mapping

from harness.engines import asking, installed, memory
from harness.engines.base import Endpoint, HostLimits, LaunchPlan, ResolvedModel, ServerNames
from harness.engines.flags import Flag, Said, older_name, spelled, unknown
from harness.engines.hugging_face import checkpoint
from harness.engines.memory import AUTO, GIB
from harness.engines.sglang import knobs, words
from harness.engines.sglang.package import SGLANG
from harness.errors import ConfigurationImpossible, FailureClass
from scenarios.space import SearchSpace, ServingConfig, Value
from scenarios.spec import EngineSpec

RENAMED = {"--cuda-graph-max-bs-decode": "--cuda-graph-max-bs"}  # today's name -> that of older releases
MIB = 1 << 20
# What SGLang takes by default, by the GPU's memory: below so many GiB, a chunk of so many tokens, graphs for so many
# requests (on four GPUs or more: the last figure). From its release 0.5.23, handle_gpu_memory_settings.
USUAL = (
    (20, 2048, 8, 8),
    (35, 4096, 48, 160),
    (60, 4096, 32, 160),
    (160, 8192, 256, 512),
    (float("inf"), 16384, 512, 512),
)
FEWEST_REST_BYTES = 10 * GIB  # left beside weights and KV cache where the GPU has more than 60 GiB


class Sglang:
    name = "sglang"
    server_names = ServerNames(
        running="num_running_reqs",
        waiting="num_queue_reqs",
        kv_usage="token_usage",
        prefix_hits="cached_tokens_total",
        prefix_queries="prompt_tokens_total",
        ttft="time_to_first_token_seconds",
        e2e="e2e_request_latency_seconds",
    )

    def version(self, spec: EngineSpec | None = None) -> str:
        python = installed.python_of(self.name, spec.python if spec else None)
        return f"sglang {installed.versions(SGLANG, python)['sglang']}"

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:
        offered = knobs.space(self.name, model, checkpoint(model, model.reference_variant).shape, host)
        _, known = installed.known_flags(SGLANG, self.name, spec.python)
        if known is None:
            return offered
        return offered.without(
            lambda knob, value: unknown(_older(knobs.flag(knob.name, value), known), known, SGLANG.title)
        )

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:
        k = config.knobs
        loaded = checkpoint(model, str(k["variant"]))
        _check(k, model.label)
        python, known = installed.known_flags(SGLANG, self.name, spec.python)
        planned = memory.on_gpus(loaded.shape, _by_vllms_names(k, host), host, loaded.longest_tokens, _budget(k, host))
        wanted: list[Said] = [
            ("--model-path", loaded.source),
            *loaded.revision_flag,
            ("--served-model-name", model.label),
            ("--host", "127.0.0.1"),
            ("--port", "{port}"),
            ("--context-length", str(loaded.longest_tokens)),
            ("--enable-metrics", None),
            ("--log-level-http", "warning"),  # a line for every request costs its time
            *knobs.flags(k),
        ]
        argv, notices = spelled(wanted, known, SGLANG.title, RENAMED)
        return LaunchPlan(
            config=config,
            argv=(python or "python", "-m", "sglang.launch_server", *argv),
            deploy_argv=("sglang", "serve", *argv),
            env={**loaded.env, **config.env},
            base_url="http://127.0.0.1:{port}/v1",
            served_model=model.label,
            health_path="/health",
            expected_memory_bytes=planned.expected_bytes,
            memory_explained=planned.explained,
            request_extras={"ignore_eos": True},
            notices=tuple(notices),
        )

    def classify(self, log: str, exit_code: int | None) -> FailureClass | None:
        return words.classify(log, exit_code)

    def disagreements(self, plan: LaunchPlan, log: str) -> tuple[str, ...]:
        """Where the running server says that it runs with something else than was asked."""
        return tuple(words.disagreements(knobs.asked_of_log(plan.config.knobs), log))

    def tokenize(self, endpoint: Endpoint, text: str) -> list[int] | None:
        return asking.tokens_of_prompt(endpoint, text, self.name)

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        """Sums over ranks and engines, by name without the prefix."""
        return asking.metrics(endpoint, "sglang:")


def _older(said: Said | None, known: Mapping[str, Flag]) -> Said | None:
    return said and (older_name(said[0], known, RENAMED), said[1])


def _check(k: Mapping[str, Value], label: str) -> None:
    """What SGLang refuses at start, or changes by itself, said before anything is launched."""
    if ":" in label:
        raise ConfigurationImpossible(f"SGLang serves no name with a colon, got {label}: set model.served_as")
    if k["schedule_policy"] in knobs.BY_PREFIX and not k["prefix_caching"]:
        raise ConfigurationImpossible(
            f"schedule_policy={k['schedule_policy']} orders by cached prefixes: prefix_caching must be true"
        )
    if k.get("mixed_chunk") and k["chunked_prefill_size"] == knobs.UNCHUNKED:
        raise ConfigurationImpossible("mixed_chunk needs prompts that are cut: chunked_prefill_size must not be -1")
    if k["speculation"] == "none":
        return
    paged = k["page_size"] not in (AUTO, 1) and k["attention_backend"] != "flashinfer"
    if paged and int(k["ngram_breadth"]) > 1:
        raise ConfigurationImpossible(
            f"drafts side by side (ngram_breadth={k['ngram_breadth']}) need page_size 1 or attention_backend "
            f"flashinfer, got page_size={k['page_size']}, attention_backend={k['attention_backend']}"
        )


def _step(k: Mapping[str, Value], host: HostLimits) -> tuple[int, int]:
    """Most tokens of prompts in one step, and most requests that decode in a graph."""
    gib = min(host.gpu_memory_bytes, default=0) / GIB
    _, chunk, graphs, graphs_of_four = next(row for row in USUAL if gib < row[0])
    if k["chunked_prefill_size"] != AUTO:
        chunk = int(k["chunked_prefill_size"])
    if chunk == knobs.UNCHUNKED:
        chunk = int(k["max_prefill_tokens"])
    if int(k.get("tensor_parallel", 1)) >= 4:
        graphs = graphs_of_four
    if k["cuda_graph_max_bs"] != AUTO:
        return chunk, int(k["cuda_graph_max_bs"])
    running = k["max_running_requests"]
    return chunk, graphs if running == AUTO else min(graphs, int(running))


def _by_vllms_names(k: Mapping[str, Value], host: HostLimits) -> dict[str, Value]:
    chunk, _ = _step(k, host)
    running = k["max_running_requests"]
    return {**k, "max_num_batched_tokens": chunk, "max_num_seqs": running}


def _budget(k: Mapping[str, Value], host: HostLimits) -> memory.Budget:
    """What is asked, else what SGLang leaves after what it sets aside."""
    if k["mem_fraction_static"] != AUTO:
        share = float(k["mem_fraction_static"])
    elif not host.gpu_memory_bytes:
        share = 0.0
    else:
        gpu_bytes = min(host.gpu_memory_bytes)
        chunk, graphs = _step(k, host)
        rest = round((512 + 1.5 * max(chunk, 2048) + 2 * graphs + 128 * int(k.get("tensor_parallel", 1))) * MIB)
        if gpu_bytes > 60 * GIB:
            rest = max(rest, FEWEST_REST_BYTES)
        share = max(0.0, 1 - rest / gpu_bytes)
    return memory.Budget("sglang", share, "mem_fraction_static", rest_apart=True)
