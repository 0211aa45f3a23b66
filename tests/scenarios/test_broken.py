"""Every broken file gives exactly the message intended for it, at its line, and never a traceback."""

import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from autotune.named import unknown
from harness import plugins
from scenarios.load import check, dump_yaml, load
from scenarios.spec import Scenario

FOLDER = Path(__file__).parent / "broken"
EXPECTED: dict[str, list[str]] = tomllib.loads((FOLDER / "expected.toml").read_text(encoding="utf-8"))

EVERY_KEY = {
    "name": "every-key",
    "description": "Each key that can be given, so that each can be given wrongly.",
    "model": {"served_as": "m", "context_tokens": 4096},
    "engine": {
        "name": "attached",
        "base_url": "http://127.0.0.1:8000/v1",
        "api_key_env": "KEY",
        "start_timeout_s": 9.0,
        "hang_timeout_s": 9.0,
    },
    "workload": {
        "api": "chat",
        "stream": True,
        "arrivals": {"process": "gamma", "rate": {"rps": 2.0}, "gap_cv": 2.0},
        "prompt_tokens": {"distribution": "lognormal", "mean": 9.0, "cv": 0.5, "min": 2, "max": 20},
        "output_tokens": {"distribution": "uniform", "min": 2, "max": 20},
        "shared_prefix_tokens": 3,
        "temperature": 0.5,
        "timeout_s": 30.0,
        "seed": 3,
    },
    "slo": {"ttft": {"percentile": 99.0, "target_ms": 500.0}, "e2e": {"times_unloaded": 3.0}, "alpha": 0.05},
    "quality": {"tasks": [{"task": "cloze", "margin": 0.1}], "alpha": 0.05, "screen_items": 20},
    "objective": "meet",
    "search": {"tuner": "tpe", "seed": 1, "knobs": {"slots": [1, 2]}, "finalists": 2, "tie": 0.02},
    "budget": {
        "trials": 2,
        "wall_clock_s": 60.0,
        "warmup_s": 1.0,
        "ramp_s": 1.0,
        "hold_s": 1.0,
        "holds": 2,
        "finalist_blocks": 2,
        "certify_s": 9.0,
        "void_retries": 1,
    },
}
TRACE = {"file": str(Path(__file__).parent / "traces" / "azure.csv"), "format": "azure"}
EVERY_TRAFFIC = {
    "name": "every-traffic",
    "model": {"served_as": "m", "context_tokens": 90000},
    "engine": {"name": "attached", "base_url": "http://127.0.0.1:8000/v1"},
    "workload": {
        "arrivals": {"process": "trace"},
        "trace": {
            **TRACE,
            "start_s": 0.5,
            "seconds": 9.0,
            "time_scale": 2.0,
            "keep": 0.9,
            "seed": 3,
            "begin": "anywhere",
            "malformed": 0.1,
        },
        "classes": [
            {
                "name": "a",
                "share": 2.0,
                "prompt_tokens": {"distribution": "empirical", "values": [3, 4]},
                "output_tokens": {
                    "distribution": "empirical",
                    "file": TRACE["file"],
                    "column": "GeneratedTokens",
                    "max": 60,
                },
                "shared_prefix": {"tokens": 8, "pool": 2, "reuse": 0.5},
                "sessions": {
                    "turns": {"mean": 3.0},
                    "think_time_s": {"distribution": "lognormal", "mean": 2.0, "cv": 0.5, "max": 9.0},
                },
                "temperature": 0.5,
                "slo": {"ttft": {"target_ms": 500.0}},
            },
            {"name": "b", "trace": {**TRACE, "max_prompt_tokens": 999, "max_output_tokens": 60, "length_scale": 0.5}},
        ],
    },
    "slo": {},
}
EVERY_SIMULATED = {
    "name": "every-simulated",
    "model": {"simulated": "8b", "context_tokens": 512},
    "engine": {"name": "simulated", "accelerator": "h100", "accelerators": 2, "version": "2"},
    "workload": {"prompt_tokens": {"mean": 9.0}, "output_tokens": {"mean": 9.0}},
    "slo": {"ttft": {"target_ms": 500.0}},
}
JUNK = [None, True, "", "junk", "8", -1, 0, 2.5, 10**30, float("nan"), float("-inf"), [], [[1]], {}, {"junk": 1}]
JARGON = (
    "Input should be",
    "Field required",
    "Extra inputs",
    "pydantic",
    "validator",
    "Traceback",
    "<class",
    "Value error",
)


def places(value, path=()):
    """The path of every key and item."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places(below, (*path, key))


def at(value, path):
    return at(value[path[0]], path[1:]) if path else value


def replaced(value, path, junk):
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], junk)
    return copy


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda f: f.stem)
def test_the_intended_message(file):
    said = [str(problem).removeprefix(str(file)).lstrip(": ") for problem in check(file, unknown)]
    installed = {f"<{group}>": ", ".join(plugins.names(group)) for group in ("engines", "tuners")}
    expected = EXPECTED[file.stem]
    for group, names in installed.items():
        expected = [message.replace(group, names) for message in expected]
    assert said == expected


def test_every_expectation_has_its_file():
    assert set(EXPECTED) == {file.stem for file in FOLDER.glob("*.yaml")}
    assert len(EXPECTED) >= 28


def test_the_key_itself_is_never_repeated():
    assert not any("sk-not-a-real-key" in message or "secret" in message for m in EXPECTED.values() for message in m)


EVERY_PLACE = [
    *((EVERY_KEY, path) for path in places(EVERY_KEY)),
    *((EVERY_TRAFFIC, path) for path in places(EVERY_TRAFFIC) if path[0] == "workload"),
    *((EVERY_SIMULATED, path) for path in places(EVERY_SIMULATED) if path[0] in ("model", "engine")),
]


@pytest.mark.parametrize(("base", "path"), EVERY_PLACE, ids=lambda p: ".".join(map(str, p)) if p else "")
def test_junk_anywhere_is_refused_in_plain_words_or_taken(tmp_path, base, path):
    file = tmp_path / "junk.yaml"
    for junk in JUNK:
        with file.open("w", encoding="utf-8") as out:
            YAML().dump(replaced(base, path, junk), out)
        problems = check(file)
        for problem in problems:
            assert problem.line is not None or problem.file != str(file)
            assert not any(word in str(problem) for word in JARGON), str(problem)
        if not problems:
            assert load(file) != Scenario.model_validate(base) or junk == at(base, path)


@pytest.mark.parametrize("base", [EVERY_KEY, EVERY_TRAFFIC, EVERY_SIMULATED])
def test_the_file_with_every_key_is_fine(tmp_path, base):
    file = tmp_path / "every.yaml"
    file.write_text(dump_yaml(Scenario.model_validate(base)), encoding="utf-8")
    assert check(file) == []
