"""How the installed SGLang is asked for its flags. Knows nothing of what they mean."""

from harness.engines.installed import Package

ASK_FLAGS = """
import argparse
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
"""
SGLANG = Package("SGLang", ("sglang",), ASK_FLAGS)
