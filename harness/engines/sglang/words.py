"""What SGLang's log says: why it ended, and what it really runs with.

Knows nothing of processes. The words are those of release 0.5.23.
"""

import re
from collections.abc import Iterator, Mapping

from harness.engines import words
from harness.errors import FailureClass

REASONS: words.Reasons = (
    ("port_taken", r"address already in use|\[Errno 98\]|port \d+ is in use|at \d+ is not available in \d+ seconds"),
    (
        "out_of_memory",
        (
            r"Not enough memory\. Please try to increase --mem-fraction-static"
            r"|Loaded weights leave no GPU memory for the KV cache|OutOfMemoryError|CUDA out of memory"
            r"|(Prefill|Decode) out of memory|runs out of memory|Cannot allocate memory|std::bad_alloc|MemoryError"
            r"|out of memory"
        ),
    ),
    ("bad_flag", r"error: (unrecognized arguments|argument |the following arguments|ambiguous option)"),
    (
        "bad_model",
        (
            r"does not appear to have a file named|Repository Not Found|is not a (valid|local) (model|folder)"
            r"|SafetensorError|HeaderTooLarge|InvalidHeader|IncompleteBuffer|Cannot find any model weights"
            r"|not a valid JSON file|should have a `model_type`|Can't load (the configuration|tokenizer)|gated repo"
            r"|LocalEntryNotFoundError|Unrecognized model|Incorrect path_or_model_id"
        ),
    ),
    (
        "unsupported",
        (
            r"not supported|unsupported|not (yet )?support|Unknown quantization method|only support(s|ed)|requires? .*"
            r"(capability|CUDA|GPU|SM\d+|Hopper|Blackwell)|does not match the quantization|must be divisible"
            r"|is unstable|No module named|is not available|not implemented"
        ),
    ),
)
# SGLang prints no levels: only a line that speaks of an error is a reason.
CHILD_FAILED = re.compile(r"Received sigquit from a child process|^Traceback", re.MULTILINE)
NO_REASON = re.compile(r"server_args=|^(?!.*(Error|ERROR|Exception|error:|out of memory))")
ARGUMENTS_LINE = re.compile(r"server_args=(?:ServerArgs\()?(?P<all>.*)")
ROOM_LINE = re.compile(
    r"max_total_num_tokens=(?P<kv_cache_tokens>\d+), chunked_prefill_size=(?P<chunked_prefill_size>-?\d+), "
    r"max_prefill_tokens=(?P<max_prefill_tokens>\d+), max_running_requests=(?P<max_running_requests>\d+)"
)
FIELDS = (
    "dtype",
    "kv_cache_dtype",
    "quantization",
    "mem_fraction_static",
    "page_size",
    "schedule_policy",
    "enable_mixed_chunk",
    "attention_backend",
    "tp_size",
    "dp_size",
)


def classify(log: str, exit_code: int | None) -> FailureClass | None:
    """It kills itself where a child of it fails: its exit status then says nothing of memory."""
    told = None if CHILD_FAILED.search(log) else exit_code
    return words.classify(log, told, REASONS, NO_REASON)


def resolved(log: str) -> dict[str, str]:
    """What the running engine says that it runs with, by the names of its own arguments.

    The scheduler's last word on how many requests run counts, not what the arguments asked for.
    """
    found: dict[str, str] = {}
    if line := ARGUMENTS_LINE.search(log):
        for name in FIELDS:
            if value := re.search(rf"(?:'{name}': |\b{name}=)('[^']*'|[^,)}}\s]+)", line["all"]):
                found[name] = value[1].strip("'")
    if line := ROOM_LINE.search(log):
        found |= line.groupdict()
    return found


def disagreements(asked: Mapping[str, str], log: str) -> Iterator[str]:
    return words.disagreements(asked, resolved(log), "SGLang")
