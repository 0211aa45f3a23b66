"""llama.cpp's continuous-batching server: the embedded default, on any CPU.

Knows its knobs, its flags and its memory; nothing of load or targets. The planned flags are those of
`llama-server`. The wheel `xllamacpp` serves behind them where it is installed, else the binary on PATH.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.engines import asking
from harness.engines.base import Endpoint, HostLimits, LaunchPlan, ResolvedModel
from harness.errors import ConfigurationImpossible, EngineNotInstalled, FailureClass
from harness.models.gguf_shape import ModelShape, shape
from scenarios.space import Knob, SearchSpace, ServingConfig, Value
from scenarios.spec import EngineSpec

BINARY = "llama-server"
GIB = 1 << 30
KV_BYTES: Mapping[str, float] = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}  # ggml block sizes / block lengths
KV_SIZES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
KV_SHARE = 0.4  # of the host's memory that the default KV cache may take
MEMORY_SHARE = 0.9  # of the host's memory that a plan may expect to use


class LlamaCpp:
    name = "llamacpp"

    def version(self, spec: EngineSpec | None = None) -> str:  # noqa: ARG002 - the contract's shape
        try:
            return f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        except importlib.metadata.PackageNotFoundError:
            pass
        if (binary := shutil.which(BINARY)) is None:
            raise EngineNotInstalled(
                "llama.cpp is not installed: run `pip install 'autotune-serving[llamacpp]'`, "
                f"or put a `{BINARY}` binary on PATH"
            )
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
        return f"{BINARY} {(said.stderr or said.stdout).strip().splitlines()[0]}"

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:  # noqa: ARG002 - the contract's shape
        reference = shape(model.variants[model.reference_variant])
        fits = int(KV_SHARE * host.memory_bytes / reference.kv_bytes_per_token(KV_BYTES["f16"]))
        sizes = [s for s in KV_SIZES if model.ref.context_tokens <= s]
        trained = reference.context_tokens
        if trained > fits:  # llama-server's own default would not start here
            trained = max((s for s in sizes if s <= fits), default=sizes[0])
        threads = sorted({1, 2, *(t for t in (4, 8, 16, 32, 64) if t < host.cores), host.cores})
        return SearchSpace(
            self.name,
            (
                Knob(
                    "variant",
                    tuple(model.variants),
                    model.reference_variant,
                    "precision",
                    "Precision of the weights.",
                    affects_output=True,
                ),
                Knob(
                    "kv_type",
                    tuple(KV_BYTES),
                    "f16",
                    "memory",
                    "Precision of the KV cache, keys and values.",
                    affects_output=True,
                ),
                Knob(
                    "kv_tokens",
                    tuple(sorted({*sizes, trained})),
                    trained,
                    "memory",
                    "Tokens the KV cache holds, all slots together. Default: the context the model was trained on, "
                    "or what fits.",
                ),
                Knob(
                    "kv_layout",
                    ("unified", "split"),
                    "unified",
                    "memory",
                    "One pool for all slots, or an equal part for each.",
                ),
                Knob("slots", (1, 2, 4, 8, 16, 32), 4, "batching", "Sequences decoded together."),
                Knob("batch", (128, 256, 512, 1024, 2048), 2048, "batching", "Most tokens of one scheduling step."),
                Knob("ubatch", (32, 64, 128, 256, 512), 512, "batching", "Most tokens of one forward pass."),
                Knob("threads", tuple(threads), host.cores, "compute", "Compute threads."),
                Knob(
                    "flash_attention",
                    ("auto", "on", "off"),
                    "auto",
                    "compute",
                    "Fused attention kernel.",
                    affects_output=True,
                ),
                Knob(
                    "speculation",
                    ("none", "ngram-simple", "ngram-map-k", "ngram-mod"),
                    "none",
                    "speculation",
                    "Draft tokens from n-grams of the text so far; verified, so greedy output should stay.",
                    affects_output=True,
                ),
                Knob(
                    "prompt_cache",
                    (True, False),
                    True,
                    "memory",
                    "Reuse the KV cache of a common prompt prefix.",
                    affects_output=True,
                ),
            ),
        )

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:
        k = config.knobs
        weights = model.variants[str(k["variant"])]
        _check(k, model.ref.context_tokens)
        expected, explained = _memory(shape(weights), weights, k)
        if expected > MEMORY_SHARE * host.memory_bytes:
            raise ConfigurationImpossible(
                f"{explained} is more than {MEMORY_SHARE:.0%} of this host's {host.memory_bytes / GIB:.1f} GiB; "
                "lower kv_tokens, or choose a variant or kv_type with fewer bytes"
            )
        flags = {
            "model": str(weights),
            "alias": model.label,
            "host": "127.0.0.1",
            "port": "{port}",
            "parallel": k["slots"],
            "ctx-size": k["kv_tokens"],
            "cache-type-k": k["kv_type"],
            "cache-type-v": k["kv_type"],
            "batch-size": k["batch"],
            "ubatch-size": k["ubatch"],
            "threads": k["threads"],
            "threads-batch": k["threads"],
            # One HTTP thread serves one open connection; fewer than the queue is long would hide the queue.
            "threads-http": 256,
            "flash-attn": k["flash_attention"],
            "spec-type": k["speculation"],
        }
        switches = [
            "--kv-unified" if k["kv_layout"] == "unified" else "--no-kv-unified",
            "--cache-prompt" if k["prompt_cache"] else "--no-cache-prompt",
            "--metrics",
        ]
        argv = [*(part for name, value in flags.items() for part in (f"--{name}", str(value))), *switches]
        return LaunchPlan(
            config=config,
            argv=(*_program(spec), *argv),
            deploy_argv=(BINARY, *argv),
            env=dict(config.env),
            base_url="http://127.0.0.1:{port}/v1",
            served_model=model.label,
            health_path="/health",
            expected_memory_bytes=expected,
            memory_explained=explained,
            request_extras={"ignore_eos": True},
        )

    def classify(self, log: str, exit_code: int | None) -> FailureClass | None:  # noqa: ARG002 - the contract's shape
        if re.search(r"couldn't bind HTTP server socket", log):
            return "port_taken"
        if re.search(r"failed to allocate|ggml_backend_.*alloc.*failed|unable to allocate|std::bad_alloc", log):
            return "out_of_memory"
        if re.search(r"V cache quantization requires flash_attn|failed to create.context|not supported", log):
            return "unsupported"
        if re.search(r"failed to load model|error loading model", log):
            return "bad_model"
        if re.search(r"error: (unrecognized arguments|argument|the following arguments)|unknown argument", log):
            return "bad_flag"
        return None

    def tokenize(self, endpoint: Endpoint, text: str) -> list[int] | None:
        return asking.tokens(endpoint, {"content": text}, self.name)

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        return {
            m[1]: float(m[2])
            for m in re.finditer(r"^llamacpp:(\w+) (\S+)$", asking.metrics_text(endpoint), re.MULTILINE)
        }


def _program(spec: EngineSpec) -> list[str]:
    """The wheel in this (or the scenario's) interpreter where it is installed, else the binary."""
    if spec.python is not None:
        return [spec.python, str(Path(__file__).with_name("llamacpp_server.py"))]
    if (binary := shutil.which(BINARY)) and not _wheel_installed():
        return [binary]
    return [sys.executable, str(Path(__file__).with_name("llamacpp_server.py"))]


def _wheel_installed() -> bool:
    return bool(list(importlib.metadata.distributions(name="xllamacpp")))


def _check(k: Mapping[str, Value], context_tokens: int) -> None:
    """What llama.cpp cannot do together, said before anything is launched."""
    slots, kv_tokens, batch, ubatch = (int(k[name]) for name in ("slots", "kv_tokens", "batch", "ubatch"))
    if k["kv_type"] != "f16" and k["flash_attention"] == "off":
        raise ConfigurationImpossible(f"kv_type={k['kv_type']} needs flash_attention on or auto, got off")
    if ubatch > batch:
        raise ConfigurationImpossible(f"ubatch must be <= batch ({batch}), got {ubatch}")
    if k["kv_layout"] == "split" and kv_tokens // slots < context_tokens:
        raise ConfigurationImpossible(
            f"kv_layout=split gives each of {slots} slots {kv_tokens // slots} of {kv_tokens} tokens; "
            f"one request may need {context_tokens} (model.context_tokens)"
        )
    if kv_tokens < context_tokens:
        raise ConfigurationImpossible(f"kv_tokens must be >= model.context_tokens ({context_tokens}), got {kv_tokens}")


def _memory(model: ModelShape, weights: Path, k: Mapping[str, Any]) -> tuple[int, str]:
    """Expected bytes: weights, KV cache, and the largest activation (logits of one micro-batch, float32)."""
    weight_bytes = weights.stat().st_size
    kv_bytes = int(k["kv_tokens"]) * model.kv_bytes_per_token(KV_BYTES[str(k["kv_type"])])
    logits_bytes = int(k["ubatch"]) * model.vocabulary * 4
    total = round(weight_bytes + kv_bytes + logits_bytes)
    return total, (
        f"{total / GIB:.2f} GiB = weights {weight_bytes / GIB:.2f} + KV cache of {k['kv_tokens']} tokens in "
        f"{k['kv_type']} {kv_bytes / GIB:.2f} + logits {logits_bytes / GIB:.2f}"
    )
