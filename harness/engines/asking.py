"""What several engines' servers are asked in the same way, over HTTP.

Knows nothing of what an engine calls its metrics or its fields.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from harness.engines.base import Endpoint
from harness.errors import EngineCrashed

SHARES = ("kv_cache_usage_perc", "token_usage")  # gauges that are parts of a whole: vLLM's, SGLang's
NUMBER = r"([+-]?(?:\d[\d.e+-]*|NaN|Inf))"  # in Prometheus' text format


def tokens(endpoint: Endpoint, body: Mapping[str, Any], engine: str) -> list[int]:
    """Token ids from the route /tokenize. Raises EngineCrashed where it does not answer."""
    try:
        answer = httpx.post(f"{endpoint.root_url}/tokenize", json=body, timeout=30, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as err:
        raise EngineCrashed(f"{engine} does not tokenize: {err}") from err
    found: list[int] = answer.json()["tokens"]
    return found


def tokens_of_prompt(endpoint: Endpoint, text: str, engine: str) -> list[int]:
    """As vLLM and SGLang are asked: without what they put before every prompt."""
    body = {"model": endpoint.served_model, "prompt": text, "add_special_tokens": False}
    return tokens(endpoint, body, engine)


def covering(said: Sequence[Mapping[str, Any]]) -> list[int]:
    """Ids of TGI's tokens that stand for some of the text; of all where its tokenizer does not say which do."""
    some = [token["id"] for token in said if token["stop"] > token["start"]]
    return some or [token["id"] for token in said]


def metrics_text(endpoint: Endpoint) -> str:
    """What /metrics says; empty where it says nothing: busy, or gone, and whoever drives it finds out."""
    try:
        # Certificates are read from disk for every client: not in the middle of a run, where there are none to check.
        verify = endpoint.root_url.startswith("https:")
        answer = httpx.get(f"{endpoint.root_url}/metrics", timeout=10, trust_env=False, verify=verify)
    except httpx.HTTPError:
        return ""
    return answer.text if answer.status_code == httpx.codes.OK else ""


def metrics(endpoint: Endpoint, prefix: str) -> dict[str, float]:
    """Sums over labels, by name without ``prefix``, a pattern; histograms as their sums and counts."""
    return metrics_in(metrics_text(endpoint), prefix)


def metrics_in(text: str, prefix: str) -> dict[str, float]:
    """Of a share (SHARES) the largest counts: two engines that are half full are not full."""
    found: dict[str, float] = {}
    for name, value in re.findall(rf"^{prefix}(\w+?)(?:\{{.*\}})? {NUMBER}$", text, re.MULTILINE):
        if name in SHARES:
            found[name] = max(found.get(name, 0.0), float(value))
        elif not name.endswith(("_bucket", "_created")):
            found[name] = found.get(name, 0.0) + float(value)
    return found
