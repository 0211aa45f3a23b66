"""Bodies in the words of the OpenAI API: the same request, the same bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.load.payload import encode, path
from scenarios.traffic import Workload

ONE = {"mean": 1.0}


def workload(**changes):
    return Workload.model_validate({"prompt_tokens": ONE, "output_tokens": ONE, **changes})


def body(asked, messages, **changes):
    return json.loads(encode(asked, messages, 7, model="m", extras={"ignore_eos": True}, **changes))


def test_a_completion_is_one_text():
    assert body(workload(stream=False), (" a b",)) == {
        "model": "m",
        "prompt": " a b",
        "max_tokens": 7,
        "temperature": 0.0,
        "stream": False,
        "ignore_eos": True,
    }


def test_a_chat_has_roles_in_turn():
    said = body(workload(api="chat"), ("hello", "hi", "and?"))
    assert said["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "and?"},
    ]
    assert (said["stream"], said["stream_options"]) == (True, {"include_usage": True})
    assert "prompt" not in said


def test_without_a_chat_the_history_is_one_text():
    assert body(workload(), (" a", " b", " c"))["prompt"] == " a b c"


@pytest.mark.parametrize(("api", "below"), [("chat", "/chat/completions"), ("completions", "/completions")])
def test_the_path_is_that_of_the_api(api, below):
    assert path(workload(api=api)) == below


def test_a_class_has_its_own_temperature_or_that_of_the_workload():
    classes = [
        {"name": n, "prompt_tokens": ONE, "output_tokens": ONE, **t}
        for n, t in (("a", {"temperature": 1.5}), ("b", {}))
    ]
    mixed = Workload.model_validate({"classes": classes, "temperature": 0.25})
    assert [body(mixed, ("x",), traffic_class=c)["temperature"] for c in "ab"] == [1.5, 0.25]


@given(st.lists(st.text(max_size=9), min_size=1, max_size=5), st.sampled_from(["chat", "completions"]))
def test_same_request_same_bytes_and_the_text_survives(messages, api):
    asked = workload(api=api)
    first, second = (encode(asked, messages, 7, model="m", extras={}) for _ in range(2))
    assert first == second
    said = json.loads(first)
    text = "".join(m["content"] for m in said["messages"]) if api == "chat" else said["prompt"]
    assert text == "".join(messages)
