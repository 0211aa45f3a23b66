import itertools
import json
import re
from collections import Counter

import pytest

from harness.quality.tasks import BUILT_IN, load_task
from scenarios.datasets import make
from scenarios.errors import UserError


def category(item):
    return item.id.rsplit("-", 1)[0]


def test_the_files_are_what_the_script_makes():
    for name, text in make.texts().items():
        assert (make.FOLDER / name).read_text(encoding="utf-8") == text, (
            f"{name}: run python -m scenarios.datasets.make"
        )


@pytest.mark.parametrize(("name", "least"), [("cloze", 300), ("arithmetic", 200), ("copy", 100)])
def test_every_task_is_large_and_asks_nothing_twice(name, least):
    task = load_task(name)
    assert len(task.items) >= least
    assert len({item.prompt for item in task.items}) == len(task.items)
    for item in task.items:
        question = item.prompt.splitlines()[-1]
        assert question not in "\n".join(item.prompt.splitlines()[:-1]), f"{item.id}: its examples give it away"


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_first_items_are_the_same_mixture_as_all(name):
    items = load_task(name).items
    whole, screen = Counter(map(category, items)), Counter(map(category, items[:60]))
    for kind, count in whole.items():
        assert abs(screen[kind] - 60 * count / len(items)) <= 1.5, kind


def test_arithmetic_is_right_by_another_road():
    for item in load_task("arithmetic").items:
        lines = item.prompt.splitlines()
        examples, question = lines[:-1], lines[-1]
        for line in [*examples, f"{question} {item.answers[0]}"]:
            numbers = [int(n) for n in re.findall(r"\d+", line)]
            if "=" in line:
                left, right = line.split("=")
                assert eval(left) == int(right), line
            elif "->" in line:
                assert numbers[1] - numbers[0] == 1, line
            else:
                assert len({b - a for a, b in itertools.pairwise(numbers)}) == 1, line


def test_copies_are_right_by_another_road():
    laws = {
        "repeat": lambda text: text,
        "last": lambda text: text.split()[-1],
        "swap": lambda text: " ".join(reversed(text.split())),
        "capitals": str.upper,
        "brackets": lambda text: f"[{text}]",
        "json": lambda text: json.dumps(dict(zip(("name", "city"), text.split(" lives in "), strict=True))),
    }
    for item in load_task("copy").items:
        for line in f"{item.prompt} {item.answers[0]}".splitlines():
            given, wanted = line.split(" => ")
            assert laws[category(item)](given) == wanted


def test_a_file_of_the_users(make_jsonl):
    task = load_task(make_jsonl(3))
    assert (task.name, [item.id for item in task.items]) == ("mine", ["q0", "q1", "q2"])
    assert task.items[0].stop == ("\n",)
    assert task.digest == load_task(make_jsonl(3)).digest != load_task(make_jsonl(4)).digest


GOOD = '{"id": "a", "prompt": "p", "answers": ["x"], "max_tokens": 4}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "bad.jsonl:2  must be one JSON object per line"),
        ('["a"]', "bad.jsonl:2 .*dictionary"),
        ('{"id": "b", "prompt": "p", "answers": [], "max_tokens": 4}', r"bad.jsonl:2  answers  .*got \[\]"),
        ('{"id": "b", "prompt": "p", "answers": ["x"], "max_tokens": 0}', "bad.jsonl:2  max_tokens  .*got 0"),
        ('{"id": "b", "prompt": "p", "answers": ["x"], "max_tokens": 4, "hint": 1}', "bad.jsonl:2  hint  "),
        ('{"id": "b", "answers": ["x"], "max_tokens": 4}', "bad.jsonl:2  prompt  Field required"),
        (GOOD, "bad.jsonl:2  id  must be unique, got a of line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(UserError, match=message):
        load_task(str(path))


def test_every_bad_line_is_told_at_once(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"x\n{GOOD}\ny\n")
    with pytest.raises(UserError, match=r"(?s)bad.jsonl:1 .*bad.jsonl:3 "):
        load_task(str(path))


def test_what_is_no_task_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no quality task `clozee`: it is none of cloze, arithmetic, copy"):
        load_task("clozee")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="at least one item"):
        load_task(str(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="must be UTF-8"):
        load_task(str(tmp_path / "latin.jsonl"))
