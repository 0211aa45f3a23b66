"""A server of completions whose answers follow a known law, so that every score is analytic."""

import json

import pytest


@pytest.fixture
def server(lawful_server):
    """``answer(prompt) -> text | HTTP status``."""

    def law(body):
        answer = lawful_server.answer(body["prompt"])
        return answer if isinstance(answer, int) else {"choices": [{"text": answer}]}

    lawful_server.answer, lawful_server.law = lambda _prompt: "", law
    return lawful_server


@pytest.fixture
def make_jsonl(tmp_path):
    """A task of ``n`` items, `question I` -> `answer I`; returns its path."""

    def make(n, name="mine"):
        path = tmp_path / f"{name}.jsonl"
        items = [
            {"id": f"q{i}", "prompt": f"question {i:04}", "answers": [f"answer {i}"], "max_tokens": 4} for i in range(n)
        ]
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        return str(path)

    return make
