"""Files of recorded traffic: what each format means, and that no row is lost without a word."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.errors import TraceError, UserError
from scenarios.traces import column, read, sha256

SAMPLES = Path(__file__).parent / "traces"


def sample(name, kind):
    return read(str(SAMPLES / name), kind, 0.01, None)


def rows(trace):
    return [(t.at_s, t.prompt_tokens, t.output_tokens) for turns in trace.sessions for t in turns]


def test_azure_2023():
    assert rows(sample("azure.csv", "azure")) == [
        (0, 350, 40),
        (pytest.approx(0.5, abs=1e-6), 96, 9),
        (pytest.approx(3.0, abs=1e-6), 12, 10),
        (pytest.approx(4.0, abs=1e-6), 900, 3),
    ]


def test_azure_2024_has_a_time_zone():
    assert rows(sample("azure-2024.csv", "azure")) == [(0, 20, 4), (pytest.approx(2.0), 30, 5)]


def test_burstgpt_rows_of_a_session_are_its_turns_and_a_failed_one_is_counted():
    trace = sample("burstgpt.csv", "burstgpt")
    assert [[t.at_s for t in turns] for turns in trace.sessions] == [[0, 4, 10], [1], [6]]
    assert [t.took_s for t in trace.sessions[0]] == [1.5, 1, 1]
    assert (trace.rows, trace.requests, trace.malformed) == (6, 5, 0)
    assert trace.unusable == {"no tokens in the prompt or in the answer": 1}


def test_burstgpt_without_sessions():
    trace = sample("burstgpt-old.csv", "burstgpt")
    assert rows(trace) == [(0, 10, 6), (4.5, 30, 4)]
    assert all(len(turns) == 1 and turns[0].took_s is None for turns in trace.sessions)


def test_mooncake_keeps_the_ids_of_blocks():
    trace = sample("mooncake.jsonl", "mooncake")
    assert [turns[0].blocks for turns in trace.sessions] == [(0, 1, 2), (0, 1, 3), (0, 4), (9,)]
    assert [t for t, *_ in rows(trace)] == [0, 1.5, 3, 3]


def test_sharegpt_conversations_are_kept_as_they_are():
    trace = sample("sharegpt.json", "sharegpt")
    first, second = trace.sessions
    assert [t.texts[0] for t in first] == ["What is a busy period?", "And an idle one — 空闲?"]
    assert [t.texts for t in second] == [("Answer in one word.\n\nTwo plus two?", "Four.")]
    assert trace.unusable == {"no question followed by an answer": 1}


@pytest.fixture
def written(tmp_path):
    def write(text, name="trace.csv"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = "2023-11-20 08:00:06.6,10,5\n"


@pytest.mark.parametrize(
    ("kind", "text", "line", "message"),
    [
        ("azure", AZURE + GOOD + "yesterday,10,5\n", 3, "TIMESTAMP  must be a date and time, got 'yesterday'"),
        ("azure", AZURE + GOOD + "2023-11-20 08:00:07,ten,5\n", 3, "ContextTokens  must be a whole number >= 0"),
        ("azure", AZURE + GOOD + "2023-11-20 08:00:07,10\n", 3, "GeneratedTokens  is missing"),
        ("azure", AZURE + GOOD + "2023-11-20 08:00:07,10,-4\n", 3, "GeneratedTokens  must be a whole number >= 0"),
        ("azure", AZURE + GOOD + "2023-11-20 08:00:05,10,4\n", 3, "is earlier than the first row"),
        (
            "burstgpt",
            "Timestamp,Request tokens,Response tokens\n1,2,3\nnan,2,3\n",
            3,
            "Timestamp  must be a number >= 0",
        ),
        ("mooncake", '{"timestamp": 0,\n', 1, "is not a JSON object"),
        (
            "mooncake",
            '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [3]}',
            1,
            "hash_ids  must name 2 blocks",
        ),
        (
            "mooncake",
            '{"timestamp": 0, "input_length": 6, "output_length": 1, "hash_ids": "3"}',
            1,
            "hash_ids  must be a list of",
        ),
        (
            "mooncake",
            '{"timestamp": 0, "input_length": true, "output_length": 1, "hash_ids": []}',
            1,
            "input_length  must",
        ),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_key(written, kind, text, line, message):
    file = written(text)
    with pytest.raises(TraceError) as refused:
        read(file, kind, 0.01, None)
    assert any(str(p).startswith(f"{file}:{line}  {message}") for p in refused.value.problems)


def test_malformed_rows_below_the_limit_are_counted_and_named(written):
    text = AZURE + GOOD * 60 + "oops\n" + GOOD * 39
    trace = read(written(text), "azure", 0.01, None)
    assert (trace.rows, trace.requests, trace.malformed) == (100, 99, 1)
    assert [p.line for p in trace.problems] == [62]


def test_above_the_limit_the_file_is_refused_with_the_share_and_the_first_rows(written):
    with pytest.raises(UserError, match=r"2 of 100 rows are malformed, at most 1\.00% may be") as refused:
        read(written(AZURE + GOOD * 98 + "oops\noops\n"), "azure", 0.01, None)
    assert [p.line for p in refused.value.problems] == [None, 100, 101]


def test_a_conversation_that_is_none_is_named_by_its_place(written):
    text = json.dumps([{"conversations": "hello"}, {"conversations": [{"from": "human"}]}])
    with pytest.raises(TraceError, match=r"\[0\]\.conversations  must be a list of messages"):
        read(written(text), "sharegpt", 0.01, None)
    with pytest.raises(TraceError, match=r"\[1\]\.conversations\[0\]  must be a message with the texts"):
        read(written(text), "sharegpt", 0.01, None)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("azure", "time,tokens\n1,2\n", "1  TIMESTAMP,ContextTokens,GeneratedTokens  is not among the columns"),
        ("azure", "", "is not among the columns, got nothing"),
        ("azure", AZURE, "has no row that can be sent"),
        ("azure", AZURE + "2023-11-20 08:00:06,0,5\n", "1 have no tokens in the prompt or in the answer"),
        ("azure", b"TIMESTAMP\xff\n", "1  is not UTF-8 text: byte 0xff"),
        ("sharegpt", "[{", "is not valid JSON"),
        ("sharegpt", "{}", "1  must be a list of conversations"),
    ],
)
def test_a_file_of_another_kind_is_refused(written, kind, text, message):
    with pytest.raises(TraceError) as refused:
        read(written(text), kind, 0.01, None)
    assert message in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read(str(tmp_path / "none.csv"), "azure", 0.01, None)


def test_a_changed_file_is_refused(written):
    file = written(AZURE + GOOD)
    digest = sha256(file)
    Path(file).write_text(AZURE + GOOD + GOOD)
    with pytest.raises(TraceError, match="has changed since the scenario was written"):
        read(file, "azure", 0.01, digest)


good_rows = st.tuples(st.floats(0, 1e6), st.integers(1, 10**6), st.integers(1, 10**4)).map(
    lambda r: f"{r[0]},{r[1]},{r[2]}"
)
bad_rows = st.sampled_from(["x,1,2", "1,2", "1,-2,3", "-1,2,3", "1,2.5,3", ",,", "inf,1,1"])


@given(st.lists(st.one_of(good_rows, bad_rows), min_size=1, max_size=30))
@settings(max_examples=60)
def test_every_row_is_a_request_or_is_counted(tmp_path_factory, lines):
    file = tmp_path_factory.mktemp("rows") / "trace.csv"
    file.write_text("\n".join(["Timestamp,Request tokens,Response tokens", "0,1,1", *lines]))
    trace = read(str(file), "burstgpt", 1.0, None)
    assert trace.rows == len(lines) + 1
    assert trace.requests + trace.malformed == len(lines) + 1


def test_a_column_of_numbers_from_either_kind_of_file(written):
    assert column(str(SAMPLES / "azure.csv"), "GeneratedTokens", None) == (40, 9, 10, 3)
    assert column(str(SAMPLES / "mooncake.jsonl"), "input_length", None) == (1100, 1300, 600, 512)
    with pytest.raises(TraceError, match=r"trace\.csv:3  n  must be a whole number >= 1, got '0'"):
        column(written("n\n4\n0\n"), "n", None)
