"""What a running server offers is found by asking it, is measured accordingly, and what it lacks is said."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from harness.engines import probing
from harness.engines.attached import Attached
from harness.engines.base import Endpoint, ResolvedModel
from harness.errors import EngineStartError
from harness.host import limits
from harness.load.payload import encode
from harness.supervise import launch
from scenarios.errors import UserError
from scenarios.spec import EngineSpec, ModelRef
from scenarios.traffic import Workload

EVERYTHING = frozenset({
    "completions", "chat", "stream", "stream_options", "usage", "ignore_eos", "logprobs", "tokenize", "metrics",
    "version", "models",
})  # fmt: skip
NATURAL_TOKENS = 2  # what its model says before it ends


class Handler(BaseHTTPRequestHandler):
    """Offers what `server.offers` holds."""

    def do_GET(self):
        documents = {
            ("models", "/v1/models"): {"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]},
            ("version", "/version"): {"version": "0.32.0"},
        }
        for (name, path), document in documents.items():
            if self.path == path and name in self.server.offers:
                return self.say(document)
        if self.path == "/metrics" and "metrics" in self.server.offers:
            return self.say(b'vllm:num_requests_running{engine="0"} 3.0\n', "text/plain")
        return self.say({}, status=404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, asked))
        offers = self.server.offers
        if self.path == "/tokenize" and "tokenize" in offers:
            known = {"model", "prompt", "add_special_tokens"} <= asked.keys()
            return self.say({"tokens": [1, 2]} if known else {}, status=200 if known else 400)
        chat = self.path == "/v1/chat/completions"
        if ("chat" if chat else "completions") not in offers or self.path not in {
            "/v1/completions",
            "/v1/chat/completions",
        }:
            return self.say({"error": "no"}, status=404)
        for name in ("stream_options", "ignore_eos"):
            if name in asked and name not in offers:
                return self.say({"error": f"unknown field {name}"}, status=400)
        most = asked["max_tokens"]
        made = most if asked.get("ignore_eos") else min(most, NATURAL_TOKENS)
        finish = "length" if made == most else "stop"
        usage = {"usage": {"prompt_tokens": 3, "completion_tokens": made}} if "usage" in offers else {}
        choice = {"index": 0, "text": "x " * made, "finish_reason": finish}
        if "logprobs" in offers and asked.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": [-0.1]}
        if asked.get("stream") and "stream" in offers:
            usage = usage if asked.get("stream_options") else {}
            told = f"data: {json.dumps({'choices': [choice]})}\n\ndata: {json.dumps({'choices': [], **usage})}\n\n"
            return self.say(f"{told}data: [DONE]\n\n".encode(), "text/event-stream")
        return self.say({"choices": [choice], **usage})

    def say(self, document, kind="application/json", status=200):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads, made.offers, made.asked = True, set(EVERYTHING), []
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def url(server):
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def ask(server, model="m"):
    return probing.ask(Endpoint(url(server).removesuffix("/v1"), url(server), model))


def test_of_a_server_that_offers_everything_nothing_is_said(server):
    found = ask(server)
    assert found.lacking == ()
    assert found.server == "vllm 0.32.0"
    assert found.endpoint.request_extras == {"ignore_eos": True}
    assert found.endpoint.route == "/completions"
    assert {c.name: c.ok for c in found.capabilities if not c.ok} == {}


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("usage", "token counts: streams do not tell them; output tokens are counted as chunks"),
        ("stream_options", "token counts: the server refuses stream_options; output tokens are counted as chunks"),
        ("stream", "streaming: answers come whole; nothing can be said of TTFT and TPOT"),
        ("ignore_eos", "exact lengths: ignore_eos is refused (HTTP 400); answers end where the model ends them"),
        ("tokenize", "tokenizer: nothing at /tokenize; prompt lengths are estimates"),
        ("metrics", "metrics: nothing at /metrics; its counters are not kept"),
        ("completions", "completions: prompts are refused; workload.api must be chat"),
        ("chat", "chat: chats are refused; workload.api must be completions"),
    ],
)
def test_what_is_lacking_is_said_with_what_follows(server, without, said):
    server.offers.discard(without)
    assert any(line.startswith(said) for line in ask(server).lacking)


@pytest.mark.parametrize("without", ["logprobs", "version", "models"])
def test_what_changes_no_measurement_is_no_notice(server, without):
    server.offers.discard(without)
    assert ask(server).lacking == ()


def test_a_version_alone_makes_no_vllm(server):
    server.offers.discard("models")
    assert ask(server).server == "version 0.32.0"


def test_another_name_than_those_listed_is_told(server):
    assert ask(server, "n").lacking == (
        "model: the server lists m, not n; if it refuses requests, change model.served_as",
    )


def test_what_a_server_refuses_is_not_sent(server):
    server.offers -= {"stream_options", "ignore_eos"}
    extras = ask(server).endpoint.request_extras
    assert "ignore_eos" not in extras
    body = json.loads(encode(Workload.model_validate(WORKLOAD), ["hello"], 4, model="m", extras=extras))
    assert body == {"model": "m", "prompt": "hello", "max_tokens": 4, "temperature": 0.0, "stream": True}


WORKLOAD = {
    "arrivals": {"process": "poisson"},
    "prompt_tokens": {"distribution": "fixed", "mean": 8},
    "output_tokens": {"distribution": "fixed", "mean": 4},
}


class TestEngine:
    MODEL = ResolvedModel(ModelRef(served_as="m", context_tokens=256), "m", reference_variant="")

    def attached(self, server, tmp_path):
        engine, spec = Attached(), EngineSpec(name="attached", base_url=url(server))
        plan = engine.plan(spec, self.MODEL, engine.knobs(spec, self.MODEL, limits()).default(), limits())
        return engine, spec, launch(engine, spec, plan, tmp_path / "log")

    def test_a_server_of_chats_alone_can_be_attached(self, server, tmp_path):
        server.offers.discard("completions")
        engine, _, running = self.attached(server, tmp_path)
        with running as r:
            assert r.endpoint.route == "/chat/completions"
            assert r.notices == (
                "completions: prompts are refused; workload.api must be chat, and there can be no quality tasks",
            )
            assert server.asked[-1][0] == "/v1/chat/completions"
        assert engine.metrics(r.endpoint) == {"num_requests_running": 3.0}
        assert engine.tokenize(r.endpoint, " the") == [1, 2]

    def test_it_is_asked_once_for_a_whole_study(self, server, tmp_path):
        engine, spec, running = self.attached(server, tmp_path)
        with running:
            pass
        before = len(server.asked)
        plan = engine.plan(spec, self.MODEL, engine.knobs(spec, self.MODEL, limits()).default(), limits())
        with launch(engine, spec, plan, tmp_path / "log"):
            pass
        assert len(server.asked) == before + 1  # whether it answers

    def test_a_server_that_answers_nothing_is_told_with_its_words(self, server, tmp_path):
        server.offers -= {"completions", "chat"}
        with pytest.raises(EngineStartError, match=r"answers HTTP 404.*no"), self.attached(server, tmp_path)[2]:
            pass

    def test_its_version_is_the_servers(self, server):
        spec = EngineSpec(name="attached", base_url=url(server))
        assert Attached().version(spec) == "attached (vllm 0.32.0)"
        server.offers.discard("version")
        assert Attached().version(spec) == "attached (unknown)"


class TestDoctor:
    def run(self, *arguments):
        return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(app, ["doctor", *arguments])

    def test_it_tells_what_a_server_offers_and_what_follows(self, server):
        server.offers -= {"tokenize", "logprobs"}
        done = self.run("--endpoint", url(server))
        assert done.exit_code == 0
        assert "vllm 0.32.0" in done.stdout
        assert "tokenizer: nothing at /tokenize; prompt lengths are estimates" in done.stdout
        assert f"base_url: {url(server)} and served_as: m" in done.stdout

    def test_for_programs(self, server):
        told = json.loads(self.run("--endpoint", url(server), "--model", "m", "--json").stdout)
        assert told["server"] == "vllm 0.32.0"
        assert told["sent_beside"] == {"ignore_eos": True}
        assert all(c["ok"] for c in told["capabilities"])

    @pytest.mark.parametrize(
        ("arguments", "error", "said"),
        [
            (["--endpoint", "127.0.0.1:9"], UserError, "--endpoint: must look like http"),
            (["--endpoint", "http://127.0.0.1:9/v1"], EngineStartError, "does not answer"),
            (["--endpoint", "http://127.0.0.1:9/v1", "--api-key-env", "NO_SUCH_KEY"], UserError, "is not set"),
            (["--model", "m"], UserError, "only with --endpoint"),
        ],
    )
    def test_what_cannot_be_asked_is_said(self, arguments, error, said):
        done = self.run(*arguments)
        assert isinstance(done.exception, error)
        assert said in str(done.exception)
