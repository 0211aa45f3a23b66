"""What a server's template adds to prompts, against servers whose templates follow a known law."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.engines.base import Endpoint
from harness.engines.llamacpp import LlamaCpp
from harness.errors import EngineCrashed
from harness.host import limits
from harness.models import store
from harness.supervise import launch
from harness.token_counts import prompt_tokens, with_template, words_for
from scenarios.spec import EngineSpec, ModelRef
from scenarios.traffic import Workload
from scenarios.words import Words
from scenarios.workload import sequence

FIVE = {"mean": 5.0}
WORDS = Words(tuple(f"w{i}" for i in range(60)), exact=True)


def workload(**changes):
    return Workload.model_validate({"api": "chat", "prompt_tokens": FIVE, "output_tokens": FIVE, **changes})


class Counting(ThreadingHTTPServer):
    """``law(messages) -> prompt tokens | None | HTTP status as text``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.law = lambda messages: 0
        self.seen = []
        root = f"http://127.0.0.1:{self.server_address[1]}"
        self.endpoint = Endpoint(root_url=root, base_url=f"{root}/v1", served_model="law", api_key_env="LAW_KEY")


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        counted = self.server.law([m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]])
        if isinstance(counted, str):
            self.send_error(int(counted))
            return
        usage = {} if counted is None else {"usage": {"prompt_tokens": counted}}
        payload = json.dumps({"choices": [], **usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Counting() as counting:
        threading.Thread(target=counting.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield counting
        counting.shutdown()


def spoken(messages):
    return sum(len(m.split()) for m in messages)


def test_a_regular_template_is_measured_and_then_subtracted(server):
    server.law = lambda messages: spoken(messages) + 9 + 6 * (len(messages) // 2)
    words = with_template(WORDS, server.endpoint, workload())
    assert (words.exact, words.first_extra_tokens, words.turn_extra_tokens) == (True, 9, 6)
    asked = workload(prompt_tokens={"mean": 30.0}, sessions={"turns": {"mean": 4.0}})
    for request in sequence(asked, words, n=8, seed=1).requests:
        assert prompt_tokens(server.endpoint, asked, request.messages) == request.prompt_tokens


def test_a_template_that_depends_on_the_length_is_not_called_exact(server):
    server.law = lambda messages: spoken(messages) + 9 + (spoken(messages) > 20)
    assert not with_template(WORDS, server.endpoint, workload()).exact


def test_a_template_that_drops_old_turns_is_not_called_exact(server):
    server.law = lambda messages: spoken(messages[-3:]) + 9
    assert not with_template(WORDS, server.endpoint, workload()).exact


def test_a_server_that_does_not_say_leaves_the_words_inexact(server):
    server.law = lambda messages: None
    words = with_template(WORDS, server.endpoint, workload())
    assert (words.exact, words.first_extra_tokens) == (False, 0)


def test_the_beginning_of_a_completion_is_measured_too(server):
    server.law = lambda messages: spoken(messages) + 1
    words = with_template(WORDS, server.endpoint, workload(api="completions"))
    assert (words.exact, words.first_extra_tokens, words.turn_extra_tokens) == (True, 1, 0)


def test_it_asks_for_one_token_without_a_stream_and_with_the_key(server, monkeypatch):
    monkeypatch.setenv("LAW_KEY", "hush")
    server.law = spoken
    assert prompt_tokens(server.endpoint, workload(), (" a b", " c", " d")) == 4
    ((path, body, key),) = server.seen
    assert (path, key) == ("/v1/chat/completions", "Bearer hush")
    assert (body["max_tokens"], body["stream"]) == (1, False)
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]


def test_an_error_is_the_engines(server):
    server.law = lambda messages: "500"
    with pytest.raises(EngineCrashed, match="does not answer a prompt of 1 messages"):
        prompt_tokens(server.endpoint, workload(), (" a",))


@pytest.mark.engine
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_real_server_counts_what_was_asked_within_one(tmp_path, api):
    """Prompts of many lengths, and conversations, by the server's own `usage`."""
    engine = LlamaCpp()
    spec = EngineSpec()
    model = store.resolve(ModelRef(name="smollm2-135m-instruct", context_tokens=1024), build=True)
    plan = engine.plan(spec, model, engine.knobs(spec, model, limits()).default(), limits())
    asked = Workload.model_validate(
        {
            "api": api,
            "prompt_tokens": {"distribution": "uniform", "min": 36, "max": 120},
            "output_tokens": {"distribution": "uniform", "min": 2, "max": 40},
            "shared_prefix": {"tokens": 20, "pool": 2, "reuse": 0.5},
            "sessions": {"turns": {"distribution": "uniform", "min": 1, "max": 4}},
        }
    )
    with launch(engine, spec, plan, tmp_path / "engine.log") as running:
        words = words_for(engine, running.endpoint, asked)
        assert words.exact
        assert (words.first_extra_tokens > 0) == (api == "chat")
        for request in sequence(asked, words, n=16, seed=1).requests:
            assert abs(prompt_tokens(running.endpoint, asked, request.messages) - request.prompt_tokens) <= 1
