"""Sets of questions with known answers: the project's own, and any JSONL file of the user's.

Knows nothing of endpoints or of scoring. One JSON object per line:
{"id", "prompt", "answers": [accepted, ...], "max_tokens", "stop": [...], "match": "begins" | "exact"}.
The first N items of a set stand for all of it: put them in no order of kind or difficulty.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from harness.measurement import Record
from scenarios.errors import Problem, UserError
from scenarios.space import digest

BUILT_IN = ("cloze", "arithmetic", "copy")
Text = Annotated[str, Field(min_length=1)]


class Item(Record):
    """``match``: the answer must begin with an accepted one, or be it; an accepted one in lower case fits any case."""

    id: Text
    prompt: Text
    answers: Annotated[tuple[Text, ...], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=512)]
    stop: tuple[Text, ...] = ("\n",)
    match: Literal["begins", "exact"] = "begins"


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        return digest([item.model_dump(mode="json") for item in self.items])


def load_task(task: str) -> Task:
    """``task``: cloze, arithmetic, copy, or the path of a JSONL file. Raises UserError with every bad line."""
    if task in BUILT_IN:
        text = (files("scenarios") / "datasets" / f"{task}.jsonl").read_text(encoding="utf-8")
        return Task(task, _parse(f"{task}.jsonl", text))
    path = Path(task).expanduser()
    if not path.is_file():
        raise UserError(f"no quality task `{task}`: it is none of {', '.join(BUILT_IN)}, and no such file exists")
    try:
        return Task(path.stem, _parse(str(path), path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as err:
        raise UserError(f"{path}: must be UTF-8 text ({err.reason} at byte {err.start})") from err


def _parse(file: str, text: str) -> tuple[Item, ...]:
    items: list[Item] = []
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = Item.model_validate(json.loads(line))
        except json.JSONDecodeError as err:
            problems.append(Problem(file, number, "", f"must be one JSON object per line: {err.msg}"))
            continue
        except ValidationError as err:
            for detail in err.errors():
                key = ".".join(str(part) for part in detail["loc"])
                problems.append(Problem(file, number, key, f"{detail['msg']}, got {_shown(detail['input'])}"))
            continue
        if item.id in first_line:
            problems.append(Problem(file, number, "id", f"must be unique, got {item.id} of line {first_line[item.id]}"))
        first_line.setdefault(item.id, number)
        items.append(item)
    if not items and not problems:
        problems.append(Problem(file, None, "", "must hold at least one item, got none"))
    if problems:
        raise UserError("\n".join(str(problem) for problem in problems))
    return tuple(items)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
