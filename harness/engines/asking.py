"""What several engines' servers are asked in the same way, over HTTP.

Knows nothing of what an engine calls its metrics or its fields.
"""

from collections.abc import Mapping
from typing import Any

import httpx

from harness.engines.base import Endpoint
from harness.errors import EngineCrashed


def tokens(endpoint: Endpoint, body: Mapping[str, Any], engine: str) -> list[int]:
    """Token ids from the route /tokenize. Raises EngineCrashed where it does not answer."""
    try:
        answer = httpx.post(f"{endpoint.root_url}/tokenize", json=body, timeout=30, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as err:
        raise EngineCrashed(f"{engine} does not tokenize: {err}") from err
    found: list[int] = answer.json()["tokens"]
    return found


def metrics_text(endpoint: Endpoint) -> str:
    """What /metrics says; empty where it says nothing: busy, or gone, and whoever drives it finds out."""
    try:
        # Certificates are read from disk for every client: not in the middle of a run, where there are none to check.
        verify = endpoint.root_url.startswith("https:")
        answer = httpx.get(f"{endpoint.root_url}/metrics", timeout=10, trust_env=False, verify=verify)
    except httpx.HTTPError:
        return ""
    return answer.text if answer.status_code == httpx.codes.OK else ""
