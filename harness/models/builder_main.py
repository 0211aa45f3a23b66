"""Builds one quantised checkpoint. Run by the interpreter of a builder's environment: this file, and a request.

The request is JSON: builder, source, revision, target, settings, texts, tokens. On stdout go lines of JSON: how far it
is (done, total, what), and at the end what was used (versions, device). Imports nothing of ours.
"""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

WORKERS = "GPTQMODEL_CPU_WORKERS"
VERSIONS = ("llmcompressor", "compressed-tensors", "gptqmodel", "transformers", "torch")


class Teller:
    """Says how many layers are done, each once."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.done = out, 0

    def say(self, **what: Any) -> None:
        print(json.dumps(what), file=self.out, flush=True)

    def layer(self, number: int, layers: int, what: str) -> None:
        if number >= self.done:
            self.done = number + 1
            self.say(done=self.done, total=layers, what=what)


def with_llmcompressor(ask: Mapping[str, Any], tell: Teller) -> None:
    from datasets import Dataset  # noqa: PLC0415 - only this builder's environment has it
    from llmcompressor import oneshot  # noqa: PLC0415
    from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: PLC0415
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(ask["source"], revision=ask["revision"], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(ask["source"], revision=ask["revision"])
    rounding = dict(ask["settings"])
    smoothing = rounding.pop("smoothing_strength", None)
    recipe: list[Any] = [QuantizationModifier(targets="Linear", **rounding)]
    calibration: dict[str, Any] = {}
    if smoothing is not None:
        recipe.insert(0, SmoothQuantModifier(smoothing_strength=smoothing))
        count = model.config.get_text_config().num_hidden_layers
        layers = next((m for m in model.modules() if type(m).__name__ == "ModuleList" and len(m) == count), ())
        for number, layer in enumerate(layers):
            layer.register_forward_hook(lambda *_, n=number: tell.layer(n, count, "calibrating"))
        calibration = {
            "dataset": Dataset.from_list(_tokenised(ask, tokenizer)),
            "num_calibration_samples": len(ask["texts"]),
            "max_seq_length": ask["tokens"],
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=recipe, **calibration)
    tell.say(done=1, total=1, what="writing")
    model.save_pretrained(ask["target"], save_compressed=True)
    tokenizer.save_pretrained(ask["target"])


def with_gptqmodel(ask: Mapping[str, Any], tell: Teller) -> None:
    # Release 7.6 makes one worker of two cores and then asks it for two.
    os.environ.setdefault(WORKERS, str(max(2, (os.cpu_count() or 1) // 2)))
    from gptqmodel import GPTQConfig, GPTQModel  # noqa: PLC0415 - only this builder's environment has it

    revision = {"revision": ask["revision"]} if ask["revision"] else {}
    model = GPTQModel.load(ask["source"], GPTQConfig(**ask["settings"]), **revision)
    layers = model.model.config.num_hidden_layers
    model.layer_callback = lambda layer_idx, submodule_finalized: (
        tell.layer(layer_idx, layers, "quantising") if submodule_finalized else None
    )
    model.quantize(_tokenised(ask, model.tokenizer), batch_size=1)
    tell.say(done=1, total=1, what="writing")
    model.save(ask["target"])


def _tokenised(ask: Mapping[str, Any], tokenizer: Any) -> list[dict[str, list[int]]]:
    cut = [tokenizer(text, truncation=True, max_length=ask["tokens"]) for text in ask["texts"]]
    return [{"input_ids": list(c["input_ids"]), "attention_mask": list(c["attention_mask"])} for c in cut]


def _versions() -> dict[str, str]:
    found = {
        name: importlib.metadata.version(name) for name in VERSIONS if list(importlib.metadata.distributions(name=name))
    }
    return {**found, "python": platform.python_version()}


def main(request: Path) -> None:
    # Libraries print: what they say goes to the log, and only we speak on stdout.
    tell = Teller(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    ask = json.loads(request.read_text("utf-8"))
    tell.say(done=0, total=1, what="loading")
    {"llmcompressor": with_llmcompressor, "gptqmodel": with_gptqmodel}[ask["builder"]](ask, tell)
    cuda = sys.modules["torch"].cuda
    device = cuda.get_device_name() if cuda.is_available() else platform.machine()
    tell.say(versions=_versions(), device=device)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
