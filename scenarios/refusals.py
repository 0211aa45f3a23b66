"""Why a scenario's values were refused, in words: what was got, what is allowed, the nearest valid key.

Turns pydantic's findings into Problems with lines. Knows nothing of YAML or files.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from scenarios.errors import Problem
from scenarios.fields import Spec
from scenarios.located import Located, Path, dotted
from scenarios.spec import ENVIRONMENT_NAME_RULE, Scenario

TYPES = {
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list, such as [1, 2]",
    "dict_type": "a mapping of keys",
}
NAME_RULE = "1 to 64 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit"
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
LONGEST_ECHO = 60


def problems(error: ValidationError, located: Located, file: str) -> list[Problem]:
    """One Problem per place, those already refused as YAML left out."""
    found: dict[Path, Problem] = {}
    for detail in error.errors(include_url=False):
        path, message = _explain(detail, located)
        already_refused = any(path[:i] in located.refused for i in range(len(path) + 1))
        if path not in found and not already_refused:
            found[path] = Problem(file, located.line(path), dotted(path), message)
    return list(found.values())


def not_among(value: Any, allowed: Sequence[str]) -> str:
    """``value`` is none of ``allowed``."""
    hint = nearest(str(value), allowed)
    if str(value) in allowed and not isinstance(value, str):
        hint = "; put it in quotes"
    return f"must be one of {', '.join(allowed)}, got {_got(value)}{hint}"


def nearest(name: str, allowed: Sequence[str]) -> str:
    """A hint; empty where nothing is near."""
    near = difflib.get_close_matches(name, allowed, n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _explain(detail: ErrorDetails, located: Located) -> tuple[Path, str]:
    path = _real(detail["loc"], located)
    if path[-1:] == ("api_key_env",):
        return path, ENVIRONMENT_NAME_RULE
    if detail["type"] == "missing":
        return _missing((*path, detail["loc"][-1]))
    if detail["type"] == "value_error":
        return _blamed(path, str(detail["ctx"]["error"]), located)
    if len(path) < len(detail["loc"]):  # every type of a union was tried: one finding each
        return path, f"must be text, a number, true or false, got {_got(detail['input'])}"
    return path, WORDS[detail["type"]](path, detail)


def _real(loc: tuple[int | str, ...], located: Located) -> Path:
    """``loc`` without what is not in the file: the tried type of a union, the name of a missing key."""
    path: Path = loc
    while path and path not in located.lines:
        path = path[:-1]
    return path


def _got(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, tuple):
        return "a list"
    text = str(value) if len(str(value)) <= LONGEST_ECHO else str(value)[: LONGEST_ECHO - 1] + "…"
    return f"the text '{text}'" if isinstance(value, str) else text


def _missing(path: Path) -> tuple[Path, str]:
    *section, key = path
    field = _model(tuple(section)).model_fields[str(key)]
    if _spec_in(field.annotation) is not None:
        return path, f"is missing: a section with keys such as {_some_keys(path)}"
    return path, f"is missing{f': {field.description}' if field.description else ''}"


def _blamed(path: Path, message: str, located: Located) -> tuple[Path, str]:
    """The key that a rule over several keys is about: the first it names, as far as it is in the file."""
    names = re.findall(r"[a-z_]+(?:\.[a-z_]+)*", message)
    first = (*path, *names[0].split("."))
    if first in located.lines:
        return first, message.removeprefix(names[0]).lstrip()
    far = next((name for name in names if "." in name), None)
    return (_real((*path, *far.split(".")), located), message) if far else (path, message)


def _wrong_type(_: Path, detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail["input"]
    hint = ""
    if kind in {"int_type", "float_type"} and isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?", value):
        hint = "; remove the quotes"
    if kind == "string_type" and isinstance(value, int | float):
        hint = "; put it in quotes"
    return f"must be {TYPES[kind]}, got {_got(value)}{hint}"


def _not_a_section(path: Path, detail: ErrorDetails) -> str:
    return f"must be a section with keys such as {_some_keys(path)}, got {_got(detail['input'])}"


def _unknown_key(path: Path, _: ErrorDetails) -> str:
    *section, key = path
    if ":" in str(key):
        return "unknown key; is a space missing after the `:`?"
    model = _model(tuple(section))
    near = difflib.get_close_matches(str(key), model.model_fields, n=1)
    if near:
        return f"unknown key; did you mean `{near[0]}`?"
    homes = [f"`{dotted(home)}`" for home in _sections() if home and key in _model(home).model_fields]
    if homes:
        return f"unknown key here; it belongs in {' or '.join(homes)}"
    return f"unknown key; allowed here: {', '.join(model.model_fields)}"


def _not_among(_: Path, detail: ErrorDetails) -> str:
    return not_among(detail["input"], re.findall(r"'([^']*)'", detail["ctx"]["expected"]))


def _out_of_bounds(_: Path, detail: ErrorDetails) -> str:
    ((bound, limit),) = detail["ctx"].items()
    return f"must be {BOUNDS[bound]} {limit if isinstance(limit, int) else f'{limit:g}'}, got {_got(detail['input'])}"


WORDS: dict[str, Callable[[Path, ErrorDetails], str]] = {
    **dict.fromkeys(TYPES, _wrong_type),
    **dict.fromkeys(("greater_than", "greater_than_equal", "less_than", "less_than_equal"), _out_of_bounds),
    "extra_forbidden": _unknown_key,
    "finite_number": lambda _, detail: f"must be a finite number, got {_got(detail['input'])}",
    "literal_error": _not_among,
    "model_type": _not_a_section,
    "string_pattern_mismatch": lambda _, detail: f"must be {NAME_RULE}, got {_got(detail['input'])}",
    "too_short": lambda *_: "must list at least one value, got an empty list",
}


def _some_keys(path: Path) -> str:
    return ", ".join(list(_model(path).model_fields)[:3])


def _model(path: Path) -> type[Spec]:
    """The type of the section at ``path``."""
    model: type[Spec] = Scenario
    for part in path:
        if isinstance(part, str):
            model = _spec_in(model.model_fields[part].annotation) or model
    return model


def _spec_in(annotation: Any) -> type[Spec] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Spec) else None
    return next((spec for arg in get_args(annotation) if (spec := _spec_in(arg)) is not None), None)


def _sections(path: Path = ()) -> list[Path]:
    """Every section of a scenario, outermost first."""
    below = [(*path, name) for name, f in _model(path).model_fields.items() if _spec_in(f.annotation) is not None]
    return [path, *(section for child in below for section in _sections(child))]
