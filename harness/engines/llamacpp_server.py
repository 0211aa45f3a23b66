"""A `llama-server` look-alike over the prebuilt library: same flags, same routes, no compiler needed.

Understands only the flags that harness/engines/llamacpp.py plans. Its own process: nothing imports it.
"""

import argparse
import signal
import sys

import xllamacpp as xl


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="llama-server (xllamacpp)", allow_abbrev=False)
    flags.add_argument("--model", required=True)
    flags.add_argument("--alias", required=True)
    flags.add_argument("--host", required=True)
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--parallel", type=int, required=True)
    flags.add_argument("--ctx-size", type=int, required=True)
    flags.add_argument("--kv-unified", action=argparse.BooleanOptionalAction, required=True)
    flags.add_argument("--cache-type-k", required=True)
    flags.add_argument("--cache-type-v", required=True)
    flags.add_argument("--batch-size", type=int, required=True)
    flags.add_argument("--ubatch-size", type=int, required=True)
    flags.add_argument("--threads", type=int, required=True)
    flags.add_argument("--threads-batch", type=int, required=True)
    flags.add_argument("--threads-http", type=int, required=True)
    flags.add_argument("--flash-attn", choices=["on", "off", "auto"], required=True)
    flags.add_argument("--cache-prompt", action=argparse.BooleanOptionalAction, required=True)
    flags.add_argument("--spec-type", choices=["none", "ngram-simple", "ngram-map-k", "ngram-mod"], required=True)
    flags.add_argument("--metrics", action="store_true")
    return flags


def params(flags: argparse.Namespace) -> xl.CommonParams:
    """The library's parameters for these flags."""
    p = xl.CommonParams()
    p.model.path = flags.model
    p.model_alias = {flags.alias}
    p.hostnames = [flags.host]
    p.port = flags.port
    p.n_parallel = flags.parallel
    p.n_ctx = flags.ctx_size
    p.kv_unified = flags.kv_unified
    p.cache_type_k = getattr(xl.ggml_type, f"GGML_TYPE_{flags.cache_type_k.upper()}")
    p.cache_type_v = getattr(xl.ggml_type, f"GGML_TYPE_{flags.cache_type_v.upper()}")
    p.n_batch = flags.batch_size
    p.n_ubatch = flags.ubatch_size
    p.cpuparams.n_threads = flags.threads
    p.cpuparams_batch.n_threads = flags.threads_batch
    p.n_threads_http = flags.threads_http
    attention = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}[flags.flash_attn]
    p.flash_attn_type = getattr(xl.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{attention}")
    p.cache_prompt = flags.cache_prompt
    kind = flags.spec_type.replace("-", "_").upper()
    p.speculative.types = [getattr(xl.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{kind}")]
    p.endpoint_metrics = flags.metrics
    p.fit_params = False  # never silently another context size than the one that is measured
    p.ui = False
    return p


def main() -> int:
    try:
        server = xl.Server(params(parser().parse_args()))
    except (RuntimeError, ValueError, MemoryError) as err:
        print(f"fatal: {err}", file=sys.stderr, flush=True)
        return 1
    print(f"ready: {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    sys.exit(main())
