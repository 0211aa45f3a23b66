"""Reading what is right: the catalogue, paths, YAML 1.2, the dump that reads back, the schema."""

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.errors import ScenarioError
from scenarios.load import CATALOG, SCHEMA_FILE, catalogue, check, dump_yaml, json_schema, load, schema_text
from scenarios.spec import Scenario

MINIMAL = """\
name: minimal
model: {name: smollm2-135m-instruct}
workload:
  prompt_tokens: {mean: 16}
  output_tokens: {mean: 8}
slo: {ttft: {target_ms: 500}}
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "scenario.yaml") -> Path:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_the_catalogue_holds_the_ready_scenarios():
    assert {"quickstart", "smoke", "chat", "latency", "attached"} <= set(catalogue())


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_a_catalogue_scenario_loads_by_name_and_by_file(name):
    scenario = load(name)
    assert scenario.name == name
    assert scenario.description
    assert load(catalogue()[name]) == load(str(catalogue()[name])) == scenario


@pytest.mark.parametrize("file", sorted(CATALOG.glob("*.yaml")), ids=lambda f: f.stem)
def test_a_catalogue_file_names_the_schema_and_says_what_it_is_for(file):
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    schema = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert schema is not None
    assert (file.parent / schema[1]).resolve() == SCHEMA_FILE.resolve()
    assert rest[1].startswith("# ")


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ScenarioError, match=r"quikstart  does not exist; did you mean `quickstart` of the catalogue"):
        load("quikstart")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="is a folder"):
        load(tmp_path)


def test_a_file_that_cannot_be_opened_is_refused(written):
    with pytest.raises(ScenarioError, match="cannot be read: Not a directory"):
        load(written(MINIMAL) / "below.yaml")


def test_a_file_too_large_is_refused_unread(written):
    file = written("#" * 200_001)
    assert [p.message for p in check(file)] == ["is too large to be a scenario: 200,001 bytes"]


def test_defaults_are_resolved(written):
    scenario = load(written(MINIMAL))
    assert scenario.engine.name == "llamacpp"
    assert scenario.workload.arrivals.process == "poisson"
    assert scenario.slo.targets["ttft"].percentile == 95


def test_relative_paths_are_of_the_file_not_of_the_shell(written, tmp_path, monkeypatch):
    text = MINIMAL.replace("name: smollm2-135m-instruct", "path: models/m.gguf") + (
        "engine: {python: ../venv/bin/python}\n"
        "quality:\n  tasks:\n    - {task: cloze, margin: 0.1}\n    - {task: mine.jsonl, margin: 0.1}\n"
        "    - {task: ./sub/../other, margin: 0.1}\n    - {task: /abs/third.jsonl, margin: 0.1}\n"
    )
    file = written(text)
    monkeypatch.chdir(tmp_path.parent)
    scenario = load(file.relative_to(tmp_path.parent))
    assert scenario.model.path == str(tmp_path / "models/m.gguf")
    assert scenario.engine.python == str(tmp_path.parent / "venv/bin/python")
    assert [t.task for t in scenario.quality.tasks] == [
        "cloze",
        str(tmp_path / "mine.jsonl"),
        str(tmp_path / "other"),
        "/abs/third.jsonl",
    ]


def test_earlier_studies_are_named_relative_to_the_file(written, tmp_path, monkeypatch):
    file = written(MINIMAL + "search: {transfer: [runs/old, ../other, /abs/third, mlflow:0a1b]}\n")
    monkeypatch.chdir(tmp_path.parent)
    scenario = load(file.relative_to(tmp_path.parent))
    there = (str(tmp_path / "runs/old"), str(tmp_path.parent / "other"), "/abs/third", "mlflow:0a1b")
    assert scenario.search.transfer == there
    elsewhere = tmp_path / "run" / "scenario.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(dump_yaml(scenario), encoding="utf-8")
    assert load(elsewhere) == scenario, "a resumed study reads the same"


def test_an_interpreter_on_the_path_stays_a_name(written):
    assert load(written(MINIMAL + "engine: {python: python3.12}\n")).engine.python == "python3.12"


def test_words_that_yaml_1_1_reads_as_booleans_are_text(written):
    scenario = load(written(MINIMAL + "search:\n  knobs: {a: [on, off], b: [true, false], c: [1, 2.5, x]}\n"))
    assert scenario.search.knobs == {"a": ("on", "off"), "b": (True, False), "c": (1, 2.5, "x")}
    assert [type(v) for v in scenario.search.knobs["c"]] == [int, float, str]


def test_numbers_in_every_spelling(written):
    text = MINIMAL.replace("mean: 16", "mean: 1.6e1").replace("target_ms: 500", "target_ms: 1_000")
    scenario = load(written(text + "search: {seed: 0x10}\n"))
    assert (scenario.workload.prompt_tokens.mean, scenario.slo.targets["ttft"].target_ms) == (16, 1000)
    assert scenario.search.seed == 16


def test_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path):
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load(file).name == "minimal"


def test_the_order_of_keys_does_not_change_the_digest(written):
    turned = "".join(reversed(re.split(r"(?m)^(?=\w)", MINIMAL)))
    assert turned != MINIMAL
    assert load(written(turned, "turned.yaml")).digest == load(written(MINIMAL)).digest


scalars = st.one_of(
    st.booleans(), st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)
scenarios = st.builds(
    lambda description, knobs, prompt, seconds, process: Scenario.model_validate(
        {
            "name": "any",
            "description": description,
            "model": {"served_as": "m", "context_tokens": 10_000},
            "engine": {"name": "attached", "base_url": "http://localhost/v1"},
            "workload": {
                "arrivals": process,
                "prompt_tokens": {"mean": prompt},
                "output_tokens": {"distribution": "uniform", "min": 2, "max": 9},
            },
            "slo": {"tpot": {"times_unloaded": 3}},
            "search": {"knobs": knobs},
            "budget": {"hold_s": seconds},
        }
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=200),
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,9}", fullmatch=True),
        st.lists(scalars.filter(lambda v: not isinstance(v, str) or v.isprintable()), min_size=1, max_size=4).filter(
            lambda values: len(set(values)) == len(values)
        ),
        max_size=3,
    ),
    st.floats(1, 500),
    st.floats(1e-6, 1e6),
    st.sampled_from([{"process": "poisson"}, {"process": "gamma", "gap_cv": 1.5}, {"process": "constant"}]),
)


@given(scenarios)
@settings(max_examples=60)
def test_a_dump_reads_back_equal(tmp_path_factory, scenario):
    file = tmp_path_factory.mktemp("dump") / "again.yaml"
    file.write_text(dump_yaml(scenario), encoding="utf-8")
    again = load(file)
    assert again == scenario
    assert again.digest == scenario.digest


def test_a_dump_quotes_what_other_readers_take_for_booleans():
    switched = load("quickstart").to_dict()
    switched["search"]["knobs"] = {"flash_attention": ["auto", "off"]}
    assert 'flash_attention: [auto, "off"]' in dump_yaml(Scenario.model_validate(switched))


def test_a_dump_shows_every_default():
    shown = dump_yaml(load("smoke"))
    for default in ("start_timeout_s: 120.0", "alpha: 0.05", "tuner: gp", "void_retries: 2"):
        assert default in shown


def test_the_stored_schema_is_current():
    """Mend with: autotune scenarios schema > scenarios/scenario.schema.json."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_the_schema_refuses_unknown_keys_and_describes():
    schema = json_schema()
    assert schema["additionalProperties"] is False
    for name, part in schema["$defs"].items():
        assert part["additionalProperties"] is False, name
        assert part["description"], name
    tokens = schema["$defs"]["ModelRef"]["properties"]["context_tokens"]
    assert "tokens" in tokens["description"]


TRACED = """\
name: traced
model: {name: smollm2-135m-instruct}
objective: meet
workload:
  arrivals: {process: trace}
  trace: {file: traffic/azure.csv, format: azure, max_prompt_tokens: 100, max_output_tokens: 50}
slo: {ttft: {target_ms: 500}}
"""
AZURE_ROWS = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-20 08:00:06,9,4\n2023-11-20 08:00:08,9,4\n"


@pytest.fixture
def traced(written, tmp_path):
    (tmp_path / "traffic").mkdir()
    (tmp_path / "traffic" / "azure.csv").write_text(AZURE_ROWS)
    return written(TRACED)


def test_a_trace_is_found_beside_the_scenario_pinned_and_its_rate_filled_in(traced, tmp_path):
    workload = load(traced).workload
    file = tmp_path / "traffic" / "azure.csv"
    assert workload.trace.file == str(file)
    assert workload.trace.sha256 == hashlib.sha256(AZURE_ROWS.encode()).hexdigest()
    assert workload.arrivals.rate.rps == 0.5  # two requests, two seconds apart


def test_a_dump_of_a_trace_reads_back_equal_until_the_file_changes(traced, written, tmp_path):
    scenario = load(traced)
    again = written(dump_yaml(scenario), "again.yaml")
    assert load(again) == scenario
    (tmp_path / "traffic" / "azure.csv").write_text(AZURE_ROWS * 2)
    with pytest.raises(ScenarioError, match="has changed since the scenario was written"):
        load(again)


def test_a_trace_that_is_not_there_is_named_with_its_key_and_line(written):
    problems = check(written(TRACED))
    assert [(p.line, p.key) for p in problems] == [(6, "workload.trace.file")]
    assert problems[0].message.startswith("does not exist: ")


def test_check_names_the_malformed_rows_of_a_trace(traced, tmp_path):
    file = tmp_path / "traffic" / "azure.csv"
    file.write_text(AZURE_ROWS + "oops\n")
    assert [str(p).removeprefix(str(file)) for p in check(traced)] == [
        "  1 of 3 rows are malformed, at most 1.00% may be",
        ":4  TIMESTAMP  must be a date and time, got 'oops'",
    ]
