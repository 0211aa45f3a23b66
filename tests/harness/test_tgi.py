"""TGI's adapter against a stand-in that speaks its published API, launched from PATH as TGI would be.

data/tgi-3.3.6-flags.json and data/tgi-3.3.6-openapi.json are of upstream's last commit: the launcher's reference page,
and the schemas of its answers.
"""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import jsonschema
import pytest

from harness.engines.asking import covering
from harness.engines.base import HostLimits, ResolvedModel
from harness.engines.tgi import LAUNCHER, PLAIN, VALUES, Tgi
from harness.errors import ConfigurationImpossible, EngineNotInstalled, EngineStartError
from harness.load.exchange import Exchange
from harness.models.hugging_face import HUB
from harness.models.store import resolve
from harness.supervise import launch
from scenarios.spec import EngineSpec, ModelRef

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import engine_suite

HERE = Path(__file__).parent
GIB = 1 << 30
CHAT = [{"role": "user", "content": "a"}]
SPEC = EngineSpec(name="tgi")
H100 = HostLimits(8, 64 * GIB, (80 * GIB,))
FLAGS = json.loads((HERE / "data" / "tgi-3.3.6-flags.json").read_text("utf-8"))
OPENAPI = json.loads((HERE / "data" / "tgi-3.3.6-openapi.json").read_text("utf-8"))


@pytest.fixture(scope="module", autouse=True)
def on_path(tmp_path_factory):
    """The stand-in as `text-generation-launcher`."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / LAUNCHER
    stand_in = shlex.join([sys.executable, str(HERE / "tgi_stand_in.py")])
    program.write_text(f'#!/bin/sh\nexec {stand_in} "$@"\n')
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=":")
        yield


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "größe 100%"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(HUB["smollm2-135m-instruct-hf"].config)))
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return resolve(ModelRef(path=str(folder), context_tokens=256), build=False)


def plan(model, host=H100, **chosen):
    config = Tgi().knobs(SPEC, model, host).complete(chosen)
    return Tgi().plan(SPEC, model, config, host)


class TestContract(engine_suite.EngineSuite):
    engine = Tgi()
    spec = SPEC
    host = H100

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, smollm):
        return smollm

    def test_counters_are_told_as_other_engines_tell_them(self, running):
        before = self.engine.metrics(running.endpoint)
        body = {"inputs": "One, two,", "parameters": {"max_new_tokens": 5}}
        httpx.post(f"{running.endpoint.root_url}/generate", json=body).raise_for_status()
        after = self.engine.metrics(running.endpoint)
        assert after["request_success_total"] - before["request_success_total"] == 1
        assert after["request_generated_tokens_sum"] - before["request_generated_tokens_sum"] == 5
        assert {"queue_size", "batch_current_size"} <= after.keys()

    def test_a_request_with_the_models_own_name_would_mean_an_adapter(self, running):
        assert running.endpoint.served_model == "tgi"
        body = {"model": "smollm2", "prompt": "x", "max_tokens": 1}
        assert httpx.post(f"{running.endpoint.base_url}/completions", json=body).status_code == 422

    @pytest.mark.parametrize("route", ["completions", "chat/completions"])
    def test_the_load_generator_reads_its_streams(self, running, route):
        said = {"messages": [{"role": "user", "content": "One, two,"}]} if "chat" in route else {"prompt": "One, two,"}
        body = {"model": "tgi", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}, **said}
        answer = httpx.post(f"{running.endpoint.base_url}/{route}", json=body)
        exchange = Exchange(None, 0)
        raw = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(answer.content)
        exchange.receive(raw + answer.content, 1)
        exchange.end(2, None)
        assert exchange.error is None
        assert len(exchange.chunk_ns) == 4
        assert exchange.usage == [2, None, 4]
        assert exchange.finish_reason == "length"

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_tgis_own_client_understands_it(self, running):
        from text_generation import Client

        client = Client(running.endpoint.root_url)
        whole = client.generate("One, two,", max_new_tokens=6)
        assert whole.generated_text == " the stand-in says what it"
        assert whole.details.generated_tokens == 6
        assert whole.details.finish_reason == "length"
        stream = list(client.generate_stream("One, two,", max_new_tokens=6))
        assert "".join(piece.token.text for piece in stream) == whole.generated_text
        assert stream[-1].details.generated_tokens == 6
        chat = client.chat([{"role": "user", "content": "One, two,"}], max_tokens=3)
        assert chat.choices[0].message.content == " the stand-in"
        assert chat.usage["completion_tokens"] == 3

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_its_refusals_are_those_that_the_client_knows(self, running):
        from text_generation import Client
        from text_generation.errors import ValidationError

        with pytest.raises(ValidationError, match="must be <= 512"):
            Client(running.endpoint.root_url).generate("One, two,", max_new_tokens=4000)


@pytest.fixture(scope="class")
def served(smollm, tmp_path_factory):
    with launch(Tgi(), SPEC, plan(smollm), tmp_path_factory.mktemp("tgi") / "log") as running:
        yield running.endpoint


def schema_of(name):
    """OpenAPI 3.0's `nullable` in the words of JSON Schema."""

    def plain(part):
        if isinstance(part, list):
            return [plain(below) for below in part]
        if not isinstance(part, dict):
            return part
        below = {key: plain(value) for key, value in part.items() if key not in {"nullable", "example", "format"}}
        return {"anyOf": [below, {"type": "null"}]} if part.get("nullable") is True else below

    return {**plain(OPENAPI), "$ref": f"#/components/schemas/{name}"}


class TestPublishedApi:
    """What the stand-in says is what TGI's OpenAPI document says that TGI says."""

    @pytest.mark.parametrize(
        ("route", "body", "schema"),
        [
            ("/generate", {"inputs": "a b", "parameters": {"max_new_tokens": 3, "details": True}}, "GenerateResponse"),
            ("/tokenize", {"inputs": "a b"}, "TokenizeResponse"),
            ("/v1/completions", {"prompt": "a b", "max_tokens": 3}, "CompletionFinal"),
            ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 3}, "ChatCompletion"),
            ("/generate", {"inputs": "a b", "parameters": {"max_new_tokens": 9000}}, "ErrorResponse"),
        ],
    )  # fmt: skip
    def test_answers(self, served, route, body, schema):
        jsonschema.validate(httpx.post(f"{served.root_url}{route}", json=body).json(), schema_of(schema))

    @pytest.mark.parametrize(
        ("route", "body", "schema"),
        [
            ("/generate_stream", {"inputs": "a b", "parameters": {"max_new_tokens": 3}}, "StreamResponse"),
            ("/v1/completions", {"prompt": "a b", "max_tokens": 3, "stream": True}, "Chunk"),
            ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 3, "stream": True}, "ChatCompletionChunk"),
        ],
    )
    def test_streams(self, served, route, body, schema):
        text = httpx.post(f"{served.root_url}{route}", json=body).text
        events = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:")]
        told = [json.loads(event) for event in events if event != "[DONE]"]
        assert len(told) == 3
        for event in told:
            jsonschema.validate(event, schema_of(schema))
        if schema == "Chunk":
            jsonschema.validate(told[-1], schema_of("CompletionFinal"))

    @pytest.mark.parametrize("name", ["Info", "ModelInfo"])
    def test_what_it_says_of_itself(self, served, name):
        document = httpx.get(f"{served.root_url}{'/info' if name == 'Info' else '/v1/models'}").json()
        jsonschema.validate(document if name == "Info" else document["data"][0], schema_of(name))


def test_attached_to_it_is_measured_as_tgi_is(served):
    from harness.engines.attached import Attached

    spec = EngineSpec(name="attached", base_url=served.base_url)
    engine, model = Attached(), ResolvedModel(ModelRef(served_as="tgi", context_tokens=256), "tgi", "")
    planned = engine.plan(spec, model, engine.knobs(spec, model, H100).default(), H100)
    with launch(engine, spec, planned, Path("unused")) as running:
        assert running.notices == ()
        assert engine.version(spec) == "attached (tgi 3.3.6)"
        assert len(engine.tokenize(running.endpoint, " the house by the river")) == 5
        assert "queue_size" in engine.metrics(running.endpoint)


class TestCommandLine:
    def test_the_control_says_as_little_as_can_be(self, smollm):
        planned = plan(smollm)
        assert planned.argv == (
            "text-generation-launcher", "--model-id", str(smollm.variants["published"]), "--hostname", "127.0.0.1",
            "--port", "{port}", "--num-shard", "1", "--max-total-tokens", "512", "--max-input-tokens", "511",
            "--usage-stats", "off",
        )  # fmt: skip
        assert dict(planned.env) == {"HF_HUB_OFFLINE": "1"}

    def test_what_is_taken_for_the_default_is_the_launchers(self):
        for name, value in PLAIN.items():
            default = FLAGS[VALUES[name]]["default"]
            assert value == ("none" if default is None else type(value)(default))

    def test_every_flag_and_value_is_the_launchers(self, smollm):
        for knob in Tgi().knobs(SPEC, smollm, H100).knobs:
            choices = FLAGS.get(VALUES.get(knob.name), {}).get("choices")
            assert choices is None or set(knob.choices) - {"auto", "none"} <= set(choices)
        assert set(VALUES.values()) | {"--cuda-graphs", "--num-shard", "--usage-stats"} <= FLAGS.keys()

    def test_what_is_no_argument_is_a_variable(self, smollm):
        planned = plan(smollm, attention="flashdecoding", prefix_caching=False, prefill_chunking=False)
        assert dict(planned.env) == {
            "HF_HUB_OFFLINE": "1", "ATTENTION": "flashdecoding", "PREFIX_CACHING": "0", "PREFILL_CHUNKING": "0",
        }  # fmt: skip

    @pytest.mark.parametrize(("largest", "said"), [(0, "0"), (64, "1,2,4,8,16,32,64")])
    def test_graphs_are_captured_up_to_the_largest_batch(self, smollm, largest, said):
        argv = plan(smollm, cuda_graph_max_bs=largest).argv
        assert argv[argv.index("--cuda-graphs") + 1] == said

    def test_a_type_is_given_only_to_weights_that_are_not_quantised(self, smollm):
        assert "dtype" not in plan(smollm, quantization="fp8", dtype="float16").config.knobs
        assert "--dtype" in plan(smollm, dtype="float16").argv

    def test_an_uncut_prompt_must_fit_into_a_step(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AUTOTUNE_MODELS", str(tmp_path))
        llama = resolve(ModelRef(name="llama-3.1-8b-instruct", context_tokens=8192), build=False)
        for chosen in ({"prefill_chunking": False}, {"speculation": "ngram"}):
            with pytest.raises(ConfigurationImpossible, match=r"must be >= 8447, got 1024"):
                plan(llama, **chosen, max_batch_prefill_tokens=1024)
        assert "--max-batch-prefill-tokens" in plan(llama, max_batch_prefill_tokens=1024).argv
        weights, activations = 8_030_261_248 * 2, 4096 * (3 * 14336 + 4 * 4096) * 2 + 256 * 128256 * 4
        tokens = int((0.9 * 80 * GIB - weights - activations - GIB) / 131072)
        assert f"({tokens:,} tokens" in plan(llama).memory_explained

    def test_not_on_path_is_said_with_where_to_get_it(self, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(EngineNotInstalled, match="put `text-generation-launcher` on PATH"):
            Tgi().version()

    def test_its_version_is_the_launchers(self):
        assert Tgi().version() == "tgi 3.3.6"


class TestFailures:
    @pytest.mark.parametrize(
        ("change", "failure"),
        [
            (lambda argv: [*argv, "--no-such-flag"], "bad_flag"),
            (lambda argv: [*argv, "--quantize", "int3"], "bad_flag"),
            (lambda argv: [a if a != "511" else "512" for a in argv], "bad_flag"),
            (lambda argv: ["/nowhere" if a.startswith("/") else a for a in argv], "bad_model"),
        ],
    )
    def test_what_the_launcher_refuses_is_recognised(self, smollm, tmp_path, change, failure):
        planned = plan(smollm)
        broken = replace(planned, argv=tuple(change(planned.argv)))
        with pytest.raises(EngineStartError) as caught, launch(Tgi(), SPEC, broken, tmp_path / "log"):
            pass
        assert caught.value.failure == failure

    def test_a_port_on_which_another_server_answers_is_never_measured(self, smollm, tmp_path, served):
        spec = EngineSpec(name="tgi", port=int(served.root_url.rsplit(":", 1)[1]))
        with (
            pytest.raises(EngineStartError, match="another server answers there") as caught,
            launch(Tgi(), spec, plan(smollm), tmp_path / "log"),
        ):
            pass
        assert caught.value.failure == "port_taken"

    def test_a_port_that_is_taken_by_who_does_not_answer(self, smollm, tmp_path):
        import socket

        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            taken = bound.getsockname()[1]
            planned = plan(smollm)
            argv = tuple(str(taken) if word == "{port}" else word for word in planned.argv)
            with (
                pytest.raises(EngineStartError) as caught,
                launch(Tgi(), SPEC, replace(planned, argv=argv), tmp_path / "log"),
            ):
                pass
        assert caught.value.failure == "port_taken"

    @pytest.mark.parametrize(
        ("line", "failure"),
        [
            ("RuntimeError: Not enough memory to handle 4096 prefill tokens. You need to decrease", "out_of_memory"),
            ("Error: Backend(NotEnoughMemory(8192)) Not enough memory to handle `max_total_tokens`", "out_of_memory"),
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB", "out_of_memory"),
            ("NotImplementedError: Sharded GPT-2 requires Flash Attention", "unsupported"),
            ("RuntimeError: Prefix caching is only supported with flashinfer", "unsupported"),
            ('Error: NotEnoughCUDADevices("`sharded` is true but only found 1 CUDA devices")', "unsupported"),
            ("Error: ShardCannotStart", "start_failed"),
        ],
    )
    def test_reasons(self, line, failure):
        noise = (
            "2026-01-01T00:00:00.000000Z  INFO text_generation_launcher: Disabling prefix caching: not supported\n"
            "2026-01-01T00:00:00.000000Z  WARN text_generation_router: out of memory is no news\n"
        )
        assert Tgi().classify(noise + line, 1) == failure


def test_what_is_put_before_every_text_is_not_counted():
    special = {"id": 128000, "text": "", "start": 0, "stop": 0}
    word = {"id": 279, "text": " the", "start": 0, "stop": 4}
    assert covering([special, word]) == [279]
    assert covering([special, special]) == [128000, 128000]  # a tokenizer that does not say
