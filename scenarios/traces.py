"""Files of recorded traffic, read: Azure, BurstGPT, Mooncake, ShareGPT; and columns of numbers.

A row that cannot be read is counted and named, never dropped in silence. Knows nothing of windows, rates or
schedules (replay.py).
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from scenarios.errors import Problem, TraceError

MOONCAKE_BLOCK_TOKENS = 512
SHOWN_PROBLEMS = 10
LONGEST_ECHO = 40
ASKERS, ANSWERERS = {"human", "user"}, {"gpt", "chatgpt", "assistant", "bing", "bard"}


@dataclass(frozen=True, slots=True)
class TraceTurn:
    """One recorded request. ``at_s``: since the first row (0 without times). ``took_s``: until its answer ended.

    ``blocks``: ids of the prompt's blocks of `MOONCAKE_BLOCK_TOKENS`; equal ids, equal text. ``texts``: question
    and answer as they were; the token counts are then 0, since only a tokenizer knows them.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    took_s: float | None = None
    blocks: tuple[int, ...] = ()
    texts: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """A file of recorded traffic. ``sessions``: turns in order of time; most formats have sessions of one turn.

    ``unusable``: rows that are well-formed but cannot be sent again, by reason.
    """

    sessions: tuple[tuple[TraceTurn, ...], ...] = field(repr=False)
    rows: int
    malformed: int
    problems: tuple[Problem, ...]  # the first of the malformed
    unusable: Mapping[str, int]

    @property
    def requests(self) -> int:
        return sum(len(turns) for turns in self.sessions)


class _Malformed(Exception):
    """One row cannot be read: the key, and what is wrong with it."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        self.message = message
        super().__init__(message)


class _Unusable(Exception):
    """One row is what it should be, and cannot be sent again."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A recorded request and the session it names; None: it stands alone."""

    turn: TraceTurn
    session: str | None = None


def sha256(file: str, expected: str | None = None) -> str:
    """Of the file's content. Raises TraceError where it cannot be read, or is not the ``expected``."""
    content = _content(file)
    _check_unchanged(file, content, expected)
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=8)
def read(file: str, kind: str, most_malformed: float, digest: str | None) -> Trace:
    """The trace in ``file``, of format ``kind``. ``digest``: the SHA-256 it must have; None: any.

    Raises TraceError when the file cannot be read, has changed, holds no usable row, or when more than the
    share ``most_malformed`` of its rows is malformed.
    """
    content = _content(file)
    _check_unchanged(file, content, digest)
    if kind == "sharegpt":
        return _conversations(file, _text(file, content), most_malformed)
    return _requests(file, _FORMATS[kind](file, _text(file, content)), most_malformed)


@lru_cache(maxsize=8)
def column(file: str, name: str, digest: str | None) -> tuple[int, ...]:
    """The whole numbers >= 1 of one column of a CSV or JSONL file. Raises TraceError if there is any other."""
    content = _content(file)
    _check_unchanged(file, content, digest)
    text = _text(file, content)
    rows = _json_lines(text) if text.lstrip().startswith("{") else _csv_rows(file, text, (name,))
    numbers, problems = [], []
    for line, row in rows:
        try:
            numbers.append(_count(_mapping(row), name, least=1))
        except _Malformed as err:
            problems.append(Problem(file, line, err.key, err.message))
    if problems or not numbers:
        raise TraceError(problems[:SHOWN_PROBLEMS] or [Problem(file, None, name, "has no numbers")])
    return tuple(numbers)


# -- files ---------------------------------------------------------------------------------------------


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as err:
        raise TraceError([Problem(file, None, "", f"cannot be read: {err.strerror}")]) from err


def _check_unchanged(file: str, content: bytes, digest: str | None) -> None:
    if digest is not None and (found := hashlib.sha256(content).hexdigest()) != digest:
        message = f"has changed since the scenario was written: sha256 is {found[:12]}…, expected {digest[:12]}…"
        raise TraceError([Problem(file, None, "", message)])


def _text(file: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise TraceError([Problem(file, line, "", f"is not UTF-8 text: byte 0x{content[err.start]:02x}")]) from err


def _csv_rows(file: str, text: str, needed: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Line and row, by the names of the first line. Raises TraceError where ``needed`` ones are not there."""
    reader = csv.reader(io.StringIO(text, newline=""))
    names = [name.strip() for name in next(reader, [])]
    missing = [name for name in needed if name not in names]
    if missing:
        got = ",".join(names)[:LONGEST_ECHO] or "nothing"
        raise TraceError([Problem(file, 1, ",".join(missing), f"is not among the columns, got {got}")])
    for values in reader:
        if values:
            yield reader.line_num, dict(zip(names, values, strict=False))


def _json_lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


# -- rows ----------------------------------------------------------------------------------------------


def _mapping(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise _Malformed("", "is not a JSON object")
    return row


def _count(row: Mapping[str, Any], key: str, *, least: int) -> int:
    value = row.get(key)
    try:
        number = value if isinstance(value, int) and not isinstance(value, bool) else int(_given(key, value))
    except ValueError:
        number = -1
    if number < least:
        raise _Malformed(key, f"must be a whole number >= {least}, got {_echo(value)}")
    return number


def _seconds(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    try:
        number = float(value if isinstance(value, int | float) else _given(key, value))
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e12:
        raise _Malformed(key, f"must be a number >= 0, got {_echo(value)}")
    return number


def _given(key: str, value: Any) -> str:
    if value is None:
        raise _Malformed(key, "is missing")
    return str(value)


def _echo(value: Any) -> str:
    text = str(value)
    return f"'{text if len(text) <= LONGEST_ECHO else text[: LONGEST_ECHO - 1] + '…'}'"


def _azure(file: str, text: str) -> Iterator[tuple[int, Callable[[], _Row]]]:
    """TIMESTAMP,ContextTokens,GeneratedTokens: Azure LLM inference traces of 2023 and 2024."""

    def parse(row: Mapping[str, Any]) -> _Row:
        stamp = _given("TIMESTAMP", row.get("TIMESTAMP"))
        try:
            at = datetime.fromisoformat(stamp)
        except ValueError as err:
            raise _Malformed("TIMESTAMP", f"must be a date and time, got {_echo(stamp)}") from err
        at_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        prompt, output = (_count(row, key, least=0) for key in ("ContextTokens", "GeneratedTokens"))
        return _Row(TraceTurn(at_s, _sendable(prompt), _sendable(output)))

    for line, row in _csv_rows(file, text, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        yield line, lambda r=row: parse(_mapping(r))  # type: ignore[misc]


def _burstgpt(file: str, text: str) -> Iterator[tuple[int, Callable[[], _Row]]]:
    """Timestamp (s),Model,Request tokens,Response tokens,…; newer files have Session ID and Elapsed time (s)."""

    def parse(row: Mapping[str, Any]) -> _Row:
        at_s = _seconds(row, "Timestamp")
        prompt, output = (_count(row, key, least=0) for key in ("Request tokens", "Response tokens"))
        took_s = _seconds(row, "Elapsed time") if row.get("Elapsed time") else None
        return _Row(TraceTurn(at_s, _sendable(prompt), _sendable(output), took_s), row.get("Session ID") or None)

    for line, row in _csv_rows(file, text, ("Timestamp", "Request tokens", "Response tokens")):
        yield line, lambda r=row: parse(_mapping(r))  # type: ignore[misc]


def _mooncake(_: str, text: str) -> Iterator[tuple[int, Callable[[], _Row]]]:
    """{"timestamp": ms, "input_length", "output_length", "hash_ids": ids of blocks of 512 tokens}."""

    def parse(row: Mapping[str, Any]) -> _Row:
        at_s = _seconds(row, "timestamp") / 1000
        prompt, output = (_count(row, key, least=0) for key in ("input_length", "output_length"))
        ids = row.get("hash_ids")
        if not isinstance(ids, list) or not all(isinstance(i, int) and i >= 0 for i in ids):
            raise _Malformed("hash_ids", f"must be a list of whole numbers >= 0, got {_echo(ids)}")
        needed = -(-prompt // MOONCAKE_BLOCK_TOKENS)
        if len(ids) != needed:
            blocks = f"{needed} blocks of {MOONCAKE_BLOCK_TOKENS} for input_length {prompt}"
            raise _Malformed("hash_ids", f"must name {blocks}, got {len(ids)}")
        return _Row(TraceTurn(at_s, _sendable(prompt), _sendable(output), blocks=tuple(ids)))

    for line, row in _json_lines(text):
        yield line, lambda r=row: parse(_mapping(r))  # type: ignore[misc]


_FORMATS: Mapping[str, Callable[[str, str], Iterator[tuple[int, Callable[[], _Row]]]]] = {
    "azure": _azure,
    "burstgpt": _burstgpt,
    "mooncake": _mooncake,
}


def _sendable(tokens: int) -> int:
    """A request without a prompt or without an answer (a failed one, in BurstGPT) cannot be sent again."""
    if tokens == 0:
        raise _Unusable("no tokens in the prompt or in the answer")
    return tokens


# -- traces --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """What became of the rows."""

    file: str
    rows: int = 0
    malformed: int = 0
    problems: list[Problem] = field(default_factory=list)
    unusable: dict[str, int] = field(default_factory=dict)

    def count(self, line: int | None, err: _Malformed | _Unusable) -> None:
        if isinstance(err, _Unusable):
            self.unusable[str(err)] = self.unusable.get(str(err), 0) + 1
            return
        self.malformed += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(Problem(self.file, line, err.key, err.message))

    def trace(self, sessions: Iterable[tuple[TraceTurn, ...]], most_malformed: float) -> Trace:
        found = tuple(sessions)
        if self.malformed > most_malformed * self.rows:
            summary = f"{self.malformed:,} of {self.rows:,} rows are malformed, at most {most_malformed:.2%} may be"
            raise TraceError([Problem(self.file, None, "", summary), *self.problems])
        if not found:
            unusable = "; ".join(f"{n:,} have {reason}" for reason, n in self.unusable.items())
            raise TraceError(
                [Problem(self.file, None, "", f"has no row that can be sent{': ' * bool(unusable)}{unusable}")]
            )
        return Trace(found, self.rows, self.malformed, tuple(self.problems), dict(self.unusable))


def _requests(file: str, rows: Iterable[tuple[int, Callable[[], _Row]]], most_malformed: float) -> Trace:
    """Times relative to the first row's; rows that name a session are its turns."""
    tally = _Tally(file)
    sessions: dict[object, list[TraceTurn]] = {}
    first_s: float | None = None
    for line, parse in rows:
        tally.rows += 1
        try:
            row = parse()
        except (_Malformed, _Unusable) as err:
            tally.count(line, err)
            continue
        first_s = row.turn.at_s if first_s is None else first_s
        if row.turn.at_s < first_s:
            tally.count(line, _Malformed("", "is earlier than the first row of the file"))
            continue
        turn = _at(row.turn, row.turn.at_s - first_s)
        sessions.setdefault(("line", line) if row.session is None else row.session, []).append(turn)
    in_order = (tuple(sorted(turns, key=lambda t: t.at_s)) for turns in sessions.values())
    return tally.trace(sorted(in_order, key=lambda turns: turns[0].at_s), most_malformed)


def _at(turn: TraceTurn, at_s: float) -> TraceTurn:
    return TraceTurn(at_s, turn.prompt_tokens, turn.output_tokens, turn.took_s, turn.blocks, turn.texts)


def _conversations(file: str, text: str, most_malformed: float) -> Trace:
    """[{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}, …]."""
    try:
        items = json.loads(text)
    except ValueError as err:
        line = err.lineno if isinstance(err, json.JSONDecodeError) else None
        raise TraceError([Problem(file, line, "", f"is not valid JSON: {err}")]) from err
    if not isinstance(items, list):
        raise TraceError([Problem(file, 1, "", "must be a list of conversations")])
    tally = _Tally(file)
    sessions = []
    for index, item in enumerate(items):
        tally.rows += 1
        try:
            sessions.append(_exchanges(item))
        except _Malformed as err:
            tally.count(None, _Malformed(f"[{index}]{err.key}", err.message))
        except _Unusable as err:
            tally.count(None, err)
    return tally.trace(sessions, most_malformed)


def _exchanges(item: Any) -> tuple[TraceTurn, ...]:
    """Questions with their answers, up to the first that breaks the alternation. A system text opens the first."""
    said = item.get("conversations") if isinstance(item, dict) else None
    if not isinstance(said, list):
        raise _Malformed(".conversations", "must be a list of messages")
    for number, message in enumerate(said):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("from", "value")):
            raise _Malformed(f".conversations[{number}]", "must be a message with the texts `from` and `value`")
    opening = ""
    if said and said[0]["from"] == "system":
        opening, said = said[0]["value"] + "\n\n", said[1:]
    turns = []
    for question, answer in zip(said[::2], said[1::2], strict=False):
        regular = question["from"] in ASKERS and answer["from"] in ANSWERERS
        if not (regular and question["value"].strip() and answer["value"].strip()):
            break
        turns.append(TraceTurn(0.0, 0, 0, texts=(opening + question["value"], answer["value"])))
        opening = ""
    if not turns:
        raise _Unusable("no question followed by an answer")
    return tuple(turns)
