"""What a server that somebody else runs offers: asked once, in a few small requests, before anything is measured.

Knows the routes that common servers share, and nothing of load or configurations.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx

from harness.engines import asking
from harness.engines.base import Endpoint, root_of

TIMEOUT = httpx.Timeout(30.0, connect=5.0)  # seconds
FIRST_ANSWER_S = 120.0  # a server may load its model for the first question
PROMPT = "Is water wet? Answer with yes or no."
LONGER_THAN_AN_ANSWER = 24  # tokens
Route = Literal["/completions", "/chat/completions"]
COMPLETIONS: Route = "/completions"
CHAT: Route = "/chat/completions"
NO_STREAM_OPTIONS = {"stream_options": None}
EXACT_LENGTHS = {"ignore_eos": True}
VERSIONS = (  # route below the root, key of the version, whose it is
    ("/version", "version", "vllm"),  # others have this route too: vLLM's models are `owned_by` it
    ("/server_info", "version", "sglang"),
    ("/info", "version", "tgi"),
    ("/props", "build_info", "llama.cpp"),
)
PREFIXES = ("vllm:", "sglang:", "tgi_", "llamacpp:")  # of the names of its metrics
TOKENIZERS: tuple[Mapping[str, Any], ...] = (  # bodies for /tokenize; `text` is put in
    {"model": None, "prompt": None, "add_special_tokens": False},  # vLLM, SGLang
    {"content": None},  # llama.cpp
    {"inputs": None},  # TGI
)


@dataclass(frozen=True, slots=True)
class Capability:
    """``ok`` None: it could not be found out. ``follows``: for a measurement, where it lacks."""

    name: str
    ok: bool | None
    found: str
    follows: str = ""


@dataclass(frozen=True, slots=True)
class Offers:
    """``endpoint``: with the route and the extras that its server understands."""

    endpoint: Endpoint
    server: str | None
    models: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    tokenizer: Mapping[str, Any] | None = None  # the body that it understands
    metrics_prefix: str | None = None

    @property
    def lacking(self) -> tuple[str, ...]:
        """One sentence for each thing that changes what is measured."""
        return tuple(f"{c.name}: {c.found}; {c.follows}" for c in self.capabilities if c.ok is False and c.follows)


@dataclass(slots=True)
class _Asked:
    client: httpx.Client
    endpoint: Endpoint
    route: Route = COMPLETIONS
    extras: dict[str, Any] = field(default_factory=dict)

    def post(self, route: Route | None = None, **more: Any) -> httpx.Response:
        """One question, with what is sent beside it."""
        route = route or self.route
        said = {"prompt": PROMPT} if route == COMPLETIONS else {"messages": [{"role": "user", "content": PROMPT}]}
        body = {"model": self.endpoint.served_model, **said, "max_tokens": 2, "temperature": 0, **more}
        timeout = httpx.Timeout(FIRST_ANSWER_S, connect=TIMEOUT.connect)
        return self.client.post(f"{self.endpoint.base_url}{route}", json=body, timeout=timeout)


def ask(endpoint: Endpoint) -> Offers:
    """With no ``served_model``, the first that is listed is asked. Raises httpx.HTTPError where nobody answers."""
    with _client(endpoint.api_key_env) as client:
        models = tuple(_models(client, endpoint.base_url))
        server = _server(client, endpoint.base_url)
        if not endpoint.served_model:
            usual = "tgi" if _is_tgi(server) else next(iter(models), "")
            endpoint = replace(endpoint, served_model=usual)
        asked = _Asked(client, endpoint)
        # llama.cpp answers a body that it does not understand with no tokens.
        tokenizer = next((b for b in TOKENIZERS if _tokens(client, endpoint, b, " the")), None)
        capabilities = [_listed(endpoint, models, server), *_answers(asked)]
    text = asking.metrics_text(endpoint)
    prefix = next((p for p in PREFIXES if re.search(rf"^{p}", text, re.MULTILINE)), "" if text else None)
    capabilities += [
        Capability(
            "tokenizer",
            tokenizer is not None,
            "answers at /tokenize" if tokenizer else "nothing at /tokenize",
            "prompt lengths are estimates from characters, near those asked but not exact",
        ),
        Capability(
            "metrics",
            prefix is not None,
            f"at /metrics, {prefix or 'names that no known server has'}" if text else "nothing at /metrics",
            "its counters are not kept with the run",
        ),
    ]
    found = replace(endpoint, route=asked.route, request_extras={**endpoint.request_extras, **asked.extras})
    return Offers(found, server, models, tuple(capabilities), tokenizer, prefix)


def server_at(base_url: str, api_key_env: str | None) -> str | None:
    """Which server, and its version; None where it does not say, or nobody answers."""
    with _client(api_key_env) as client, contextlib.suppress(httpx.HTTPError):
        return _server(client, base_url)
    return None


def tokens(endpoint: Endpoint, body: Mapping[str, Any], text: str) -> list[int] | None:
    """Token ids of ``text``, asked with the ``body`` that the server was found to understand."""
    with _client(endpoint.api_key_env) as client:
        return _tokens(client, endpoint, body, text)


def _client(api_key_env: str | None) -> httpx.Client:
    """No connection is used twice: servers drop idle ones, and the next question would fail."""
    key = os.environ.get(api_key_env or "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(headers=headers, timeout=TIMEOUT, limits=limits, trust_env=False)


def _tokens(client: httpx.Client, endpoint: Endpoint, body: Mapping[str, Any], text: str) -> list[int] | None:
    filled = {k: (endpoint.served_model if k == "model" else text) if v is None else v for k, v in body.items()}
    try:
        answer = client.post(f"{endpoint.root_url}/tokenize", json=filled)
        said = answer.json() if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, ValueError):
        return None
    if isinstance(said, list) and all(isinstance(token, dict) for token in said):
        return asking.covering(said)
    found = said.get("tokens") if isinstance(said, dict) else None
    return found if isinstance(found, list) else None


def _document(client: httpx.Client, url: str) -> dict[str, Any]:
    """Empty where there is none. Raises httpx.TransportError where nobody is at that address."""
    try:
        answer = client.get(url)
        said = answer.json() if answer.status_code == httpx.codes.OK else {}
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise
    except (httpx.HTTPError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _models(client: httpx.Client, base_url: str) -> dict[str, str]:
    """Names that are listed, and whose they are said to be."""
    listed = _document(client, f"{base_url}/models").get("data")
    found = [m for m in listed if isinstance(m, dict) and "id" in m] if isinstance(listed, list) else []
    return {str(m["id"]): str(m.get("owned_by")) for m in found}


def _server(client: httpx.Client, base_url: str) -> str | None:
    for route, key, whose in VERSIONS:
        if isinstance(version := _document(client, f"{root_of(base_url)}{route}").get(key), str):
            known = whose != "vllm" or whose in _models(client, base_url).values()
            return f"{whose if known else 'version'} {version}"
    return None


def _is_tgi(server: str | None) -> bool:
    return server is not None and server.startswith("tgi ")


def _listed(endpoint: Endpoint, models: tuple[str, ...], server: str | None) -> Capability:
    name = endpoint.served_model
    if _is_tgi(server):
        say = "set model.served_as: tgi"
        return Capability("model", name == "tgi", "TGI takes every name but tgi for that of an adapter", say)
    if not models:
        return Capability("model", None, "the server lists no models")
    if name in models:
        return Capability("model", True, f"{name} is served")
    return Capability(
        "model",
        False,
        f"the server lists {', '.join(models[:5])}, not {name}",
        "if it refuses requests, change model.served_as",
    )


def _answers(asked: _Asked) -> Iterator[Capability]:
    """How it answers; notes in ``asked`` what to ask it with."""
    answers = {route: asked.post(route) for route in (COMPLETIONS, CHAT)}
    routes = [route for route, answer in answers.items() if answer.status_code == httpx.codes.OK]
    if not routes:
        said = answers[CHAT]
        yield Capability("answers", False, f"HTTP {said.status_code}: {said.text[:200]}", "nothing can be measured")
        return
    asked.route = routes[0]
    yield Capability(
        "completions",
        COMPLETIONS in routes,
        "prompts are answered" if COMPLETIONS in routes else "prompts are refused",
        "workload.api must be chat, and there can be no quality tasks",
    )
    yield Capability(
        "chat",
        CHAT in routes,
        "chats are answered" if CHAT in routes else "chats are refused",
        "workload.api must be completions",
    )
    yield from _streaming(asked)
    yield _lengths(asked, routes[-1])
    logprobs = asked.post(max_tokens=1, logprobs=True if asked.route == CHAT else 1)
    given = logprobs.status_code == httpx.codes.OK and _choice(logprobs).get("logprobs")
    yield Capability("logprobs", bool(given), "given" if given else "not given")


def _streaming(asked: _Asked) -> Iterator[Capability]:
    streamed = asked.post(stream=True, stream_options={"include_usage": True})
    refused = streamed.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
    if refused:
        streamed = asked.post(stream=True)
        if streamed.status_code == httpx.codes.OK:
            asked.extras |= NO_STREAM_OPTIONS
    streams = streamed.headers.get("content-type", "").startswith("text/event-stream")
    yield Capability(
        "streaming",
        streams,
        "token by token" if streams else "answers come whole",
        "nothing can be said of TTFT and TPOT: set workload.stream: false and promise e2e",
    )
    counted = streams and bool(re.search(r'"completion_tokens": ?\d', streamed.text))
    why = "the server refuses stream_options" if refused else "streams do not tell them"
    yield Capability(
        "token counts",
        counted,
        "in every stream" if counted else why,
        "output tokens are counted as chunks: several in one chunk count as one",
    )


def _lengths(asked: _Asked, route: Route) -> Capability:
    """Whether an answer can be made to go on to the length asked, past where the model ends it."""
    usual, longer = (asked.post(route, max_tokens=LONGER_THAN_AN_ANSWER, **e) for e in ({}, EXACT_LENGTHS))
    accepted = longer.status_code == httpx.codes.OK
    reached = accepted and _choice(longer).get("finish_reason") == "length"
    if reached:
        asked.extras |= EXACT_LENGTHS
    if reached and _choice(usual).get("finish_reason") == "length":
        return Capability("exact lengths", None, "ignore_eos is accepted; this model does not end answers by itself")
    refused = "is not heeded" if accepted else f"is refused (HTTP {longer.status_code})"
    return Capability(
        "exact lengths",
        reached,
        f"ignore_eos {'is heeded' if reached else refused}",
        "answers end where the model ends them, which may be shorter than the workload asks",
    )


def _choice(answer: httpx.Response) -> dict[str, Any]:
    try:
        choices = answer.json().get("choices")
    except (json.JSONDecodeError, AttributeError):
        return {}
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
