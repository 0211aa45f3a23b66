"""What every load generator is asked for in one cell, what it says it saw, and the inputs they share.

Knows nothing of any one generator, nor of what the server recorded.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

TOKENS = 16
TTFT_MS = 20.0
GAP_MS = 5.0
PROMPT_WORDS = 8
MODEL = "stub"

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ask:
    """``count`` streaming requests at ``rate_rps``, a Poisson process where the generator has one."""

    url: str
    rate_rps: float
    count: int
    seed: int
    folder: Path  # empty: the generator's own files go here
    inputs: Path  # of write_inputs
    workers: int = 1

    @property
    def seconds(self) -> float:
        return self.count / self.rate_rps


@dataclass(frozen=True, slots=True)
class Answers:
    """What a generator reports: one entry per request that it counts as a success, in its own order.

    ``join``: how a request is found in the server's record. "body" (hash), "client_id", "seq" (the answer's id):
    by ``keys``; "order": by the order of ``start_ns``; "none": quantiles are compared with quantiles.
    """

    ttft_ms: FloatArray
    tpot_ms: FloatArray
    errors: int
    join: str
    keys: tuple[str, ...] = ()
    start_ns: npt.NDArray[np.int64] | None = None  # any clock: only their order is used
    due_ns: npt.NDArray[np.int64] | None = None  # intended send times, monotonic; None: the generator does not say
    lateness_ms: FloatArray | None = None  # sent minus intended
    notes: tuple[str, ...] = ()


def prompts(seed: int, count: int) -> list[str]:
    words = random.Random(seed)
    return [" ".join(f"w{words.randrange(1000)}" for _ in range(PROMPT_WORDS)) for _ in range(count)]


def write_inputs(folder: Path) -> Path:
    """A tokenizer of a thousand words, as no model hub is asked, and prompts in the formats that are read."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    specials = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *(f"w{k}" for k in range(1000))])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": word, "special": True, **flags} for i, word in enumerate(specials)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    (tokenizer / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    texts = prompts(0, 2000)
    lines = {
        "prompts.txt": texts,
        "prompts.jsonl": [json.dumps({"prompt": text, "output_tokens_count": TOKENS}) for text in texts],
        "texts.jsonl": [json.dumps({"text": text}) for text in texts],
    }
    for name, rows in lines.items():
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
