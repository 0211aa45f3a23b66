"""What a server's template adds to prompts, against servers whose templates follow a known law."""

from dataclasses import replace

import pytest

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


@pytest.fixture
def server(lawful_server):
    """``count(messages) -> prompt tokens | None | HTTP status as text``."""

    def law(body):
        said = [m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]]
        counted = lawful_server.count(said)
        if isinstance(counted, str):
            return int(counted)
        return {"choices": [], **({} if counted is None else {"usage": {"prompt_tokens": counted}})}

    lawful_server.law = law
    return lawful_server


def spoken(messages):
    return sum(len(m.split()) for m in messages)


def test_a_regular_template_is_measured_and_then_subtracted(server):
    server.count = lambda messages: spoken(messages) + 9 + 6 * (len(messages) // 2)
    words = with_template(WORDS, server.endpoint, workload())
    assert (words.exact, words.first_extra_tokens, words.turn_extra_tokens) == (True, 9, 6)
    asked = workload(prompt_tokens={"mean": 30.0}, sessions={"turns": {"mean": 4.0}})
    for request in sequence(asked, words, n=8, seed=1).requests:
        assert prompt_tokens(server.endpoint, asked, request.messages) == request.prompt_tokens


def test_a_template_that_depends_on_the_length_is_not_called_exact(server):
    server.count = lambda messages: spoken(messages) + 9 + (spoken(messages) > 20)
    assert not with_template(WORDS, server.endpoint, workload()).exact


def test_a_template_that_drops_old_turns_is_not_called_exact(server):
    server.count = lambda messages: spoken(messages[-3:]) + 9
    assert not with_template(WORDS, server.endpoint, workload()).exact


def test_a_server_that_does_not_say_leaves_the_words_inexact(server):
    server.count = lambda messages: None
    words = with_template(WORDS, server.endpoint, workload())
    assert (words.exact, words.first_extra_tokens) == (False, 0)


def test_the_beginning_of_a_completion_is_measured_too(server):
    server.count = lambda messages: spoken(messages) + 1
    words = with_template(WORDS, server.endpoint, workload(api="completions"))
    assert (words.exact, words.first_extra_tokens, words.turn_extra_tokens) == (True, 1, 0)


def test_it_asks_for_one_token_without_a_stream_and_with_the_key(server, monkeypatch):
    monkeypatch.setenv("LAW_KEY", "hush")
    server.count = spoken
    endpoint = replace(server.endpoint, api_key_env="LAW_KEY")
    assert prompt_tokens(endpoint, workload(), (" a b", " c", " d")) == 4
    (path,), (body,), (headers,) = server.paths, server.bodies, server.headers_seen
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer hush")
    assert (body["max_tokens"], body["stream"]) == (1, False)
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]


def test_an_error_is_the_engines(server):
    server.count = lambda messages: "500"
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
