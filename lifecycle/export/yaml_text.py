"""YAML that every reader understands alike: each text that could be taken for something else is quoted.

Knows nothing of what is in a document.
"""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from scenarios.errors import UserError

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
READ_AS_SOMETHING_ELSE = {"true", "false", "on", "off", "yes", "no", "y", "n", "null", "inf", "nan"}  # YAML 1.1
WIDTH = 1 << 20  # lines are never folded


def dump(documents: Sequence[Mapping[str, Any]], head: Sequence[str] = ()) -> str:
    """``head``: comment lines before the first document."""
    writer = YAML()
    writer.width = WIDTH
    writer.indent(mapping=2, sequence=4, offset=2)
    texts = []
    for document in documents:
        out = StringIO()
        writer.dump(_quoted(document), out)
        texts.append(out.getvalue())
    return "".join(f"# {line}\n" for line in head) + "---\n".join(texts)


def read(text: str) -> list[dict[str, Any]]:
    """Every document of ``text``. Raises UserError."""
    try:
        documents = list(YAML(typ="safe", pure=True).load_all(text))
    except YAMLError as err:
        raise UserError(f"not YAML: {err}") from err
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise UserError("not the expected YAML: every document must be a mapping")
    return documents


def scalar(values: Sequence[str]) -> Any:
    """The values of a flag: a list of several, a number where one is written as YAML would write it."""
    if len(values) > 1:
        return list(values)
    text = values[0]
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text


def words(said: Any) -> list[str]:
    """The values that `scalar` was given."""
    return [str(value) for value in said] if isinstance(said, list) else [str(said)]


def comments(text: str) -> list[str]:
    return [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]


def _quoted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _quoted(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(below) for below in value]
    if isinstance(value, str) and not (PLAIN.fullmatch(value) and value.lower() not in READ_AS_SOMETHING_ELSE):
        return DoubleQuotedScalarString(value)
    return value
