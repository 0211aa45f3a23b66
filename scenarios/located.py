"""YAML text to plain data in which every key and value knows its line.

Knows nothing of scenarios. YAML 1.2: `off`, `yes` and dates are text; tags, anchors and directives are refused.
"""

from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.reader import ReaderError

from scenarios.errors import Problem, ScenarioError

Path = tuple[str | int, ...]

LONGEST_NUMBER = 300  # characters; no quantity needs more, and Python refuses to read very long ones
UNCLOSED = ("found unexpected end of stream", "expected ',' or")
STREAM_END = "'<stream end>'"
TAG = "tag:yaml.org,2002:"
IN_PLAIN_WORDS = {
    "mapping values are not allowed here": "a `:` where none can be: check the indentation, or quote the text",
    "could not find expected ':'": "a key without `:`",
    "found unexpected end of stream": "the quote opened here is not closed",
    "expected a single document in the stream": "a second document (`---`); a file holds one scenario",
    "but found another document": "a second document (`---`); a file holds one scenario",
}


@dataclass(slots=True)
class Located:
    """``data``: dict, tuple, str, int, float, bool, None. ``lines``: of every key and item, from 1."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=lambda: {(): 1})
    refused: set[Path] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path) -> int | None:
        """The line of ``path``, or of the nearest section around it that is there."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def dotted(path: Path) -> str:
    """`workload.arrivals.rate`, `quality.tasks[0].margin`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(content: bytes, file: str) -> Located:
    """The mapping in ``content``; what no scenario may hold is in ``problems``. Raises ScenarioError if not YAML."""
    root = _compose(_decode(content, file), file)
    located = Located()
    located.data = _Reader(file, located).value(root, ())
    return located


def _refusal(file: str, line: int | None, message: str) -> ScenarioError:
    return ScenarioError([Problem(file, line, "", message)])


def _decode(content: bytes, file: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        byte = content[err.start]
        raise _refusal(file, line, f"is not UTF-8 text: byte 0x{byte:02x}; save the file as UTF-8") from err
    for number, row in enumerate(text.splitlines(), 1):
        if row.startswith("%"):
            raise _refusal(file, number, "YAML directives are not used in scenarios: remove the line")
    return text


def _compose(text: str, file: str) -> MappingNode:
    try:
        root = YAML(pure=True).compose(text)
    except MarkedYAMLError as err:
        unclosed = str(err.problem).startswith(UNCLOSED)
        mark = (err.context_mark if unclosed else None) or err.problem_mark or err.context_mark
        raise _refusal(file, mark.line + 1 if mark else None, f"is not valid YAML: {_plain(err)}") from err
    except ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        raise _refusal(file, line, f"is not valid YAML: {err.reason} (#x{err.character:02x})") from err
    except YAMLError as err:
        raise _refusal(file, None, f"is not valid YAML: {err}") from err
    except RecursionError as err:
        raise _refusal(file, None, "is nested too deeply to be a scenario") from err
    if root is None:
        raise _refusal(file, None, "is empty; `autotune scenarios show quickstart` prints one to start from")
    if not isinstance(root, MappingNode):
        line = root.start_mark.line + 1
        raise _refusal(file, line, "must be a mapping of keys such as `name:`, `model:`, `workload:`")
    return root


def _plain(err: MarkedYAMLError) -> str:
    problem = str(err.problem or err.context or err)
    if "'\\t'" in problem:
        return "a tab is used to indent: use spaces"
    if problem.startswith("found character"):
        return f"{problem.removeprefix('found character ').split(' ')[0]} cannot start a value: put it in quotes"
    if problem.startswith("expected the node content"):
        return "a value is missing here"
    if problem.startswith("expected <block end>"):
        return "the indentation does not fit the lines above, or a list is mixed with keys"
    if problem.startswith("expected ',' or"):
        return f"the bracket opened here is not closed: {problem.replace(STREAM_END, 'the end of the file')}"
    return IN_PLAIN_WORDS.get(problem, problem)


@dataclass(slots=True)
class _Reader:
    """Walks the node graph once."""

    file: str
    located: Located
    seen: set[int] = field(default_factory=set)

    def refuse(self, node: Node, path: Path, message: str) -> None:
        self.located.refused.add(path)
        self.located.problems.append(Problem(self.file, node.start_mark.line + 1, dotted(path), message))

    def value(self, node: Node, path: Path) -> Any:
        if node.anchor is not None:
            if id(node) not in self.seen:
                self.refuse(node, path, f"anchors such as `&{node.anchor}` are not used in scenarios: write values out")
            self.seen.add(id(node))
            self.located.refused.add(path)
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            self.located.lines.update({(*path, i): item.start_mark.line + 1 for i, item in enumerate(node.value)})
            return tuple(self.value(item, (*path, i)) for i, item in enumerate(node.value))
        return self.scalar(node, path)

    def mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str) or not key or str(key_node.tag) == TAG + "merge":
                line = key_node.start_mark.line + 1
                message = f"a key must be a plain word, got {f'`{key}`' if isinstance(key, str) else 'a collection'}"
                self.located.problems.append(Problem(self.file, line, dotted(path), message))
            elif key in found:
                first = self.located.lines[(*path, key)]
                self.refuse(key_node, (*path, key), f"is given twice, first on line {first}: keep one")
            else:
                self.located.lines[(*path, key)] = key_node.start_mark.line + 1
                found[key] = self.value(value_node, (*path, key))
        return found

    def scalar(self, node: Node, path: Path) -> Any:
        text: str = node.value
        kind = str(node.tag).removeprefix(TAG)
        if str(node.tag).startswith("!") or kind not in {"str", "timestamp", "null", "bool", "int", "float"}:
            self.refuse(node, path, f"tags such as `{_tag(node)}` are not used in scenarios: remove it")
            return None
        if kind in {"str", "timestamp"}:
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if len(text) > LONGEST_NUMBER:
            self.refuse(node, path, f"has {len(text)} digits: no quantity here needs so many")
            return None
        return self.number(node, path, kind)

    def number(self, node: Node, path: Path, kind: str) -> int | float | None:
        digits = node.value.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan")
        try:
            if kind == "int":
                return int(digits, {"0x": 16, "0o": 8, "0b": 2}.get(digits.lstrip("+-")[:2], 10))
            return float(digits)
        except ValueError:
            self.refuse(node, path, f"must be a number, got the text '{node.value}'")
            return None


def _tag(node: Node) -> str:
    return str(node.tag).replace(TAG, "!!")
