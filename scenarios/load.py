"""Scenario files to Scenarios and back: the only parser, the only place where paths are made absolute.

Knows nothing of what a scenario is used for.
"""

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from scenarios import refusals, traces
from scenarios.errors import Problem, ScenarioError
from scenarios.lengths import numbers
from scenarios.located import Path as KeyPath
from scenarios.located import dotted, read_yaml
from scenarios.replay import replay
from scenarios.spec import Scenario
from scenarios.traffic import Lengths, Rate, TraceFile, Traffic, Workload

CATALOG = Path(__file__).parent / "catalog"
SCHEMA_FILE = Path(__file__).parent / "scenario.schema.json"
LARGEST_FILE_BYTES = 200_000
TFile = TypeVar("TFile", Lengths | None, TraceFile | None)
TTraffic = TypeVar("TTraffic", bound=Traffic)

Unknown = Callable[[Scenario], Iterable[tuple[KeyPath, str]]]

READ_AS_BOOLEAN_BY_OTHERS = {"on", "off", "yes", "no", "y", "n"}  # YAML 1.1


def _nothing(_: Scenario) -> tuple[()]:
    return ()


def catalogue() -> dict[str, Path]:
    """The ready scenarios, by name."""
    return {path.stem: path for path in sorted(CATALOG.glob("*.yaml"))}


def load(source: str | Path, unknown: Unknown = _nothing) -> Scenario:
    """The scenario in a file, or of that name in the catalogue. Raises ScenarioError with every problem.

    ``unknown``: who knows what a scenario may name, such as engines, says where it names something else.
    """
    path = _find(source)
    located = read_yaml(_content(path), str(path))
    problems = located.problems
    try:
        scenario = Scenario.model_validate(located.data, strict=True)
    except ValidationError as err:
        problems += refusals.problems(err, located, str(path))
        raise ScenarioError(sorted(problems, key=lambda p: p.line or 0)) from err
    if problems:
        raise ScenarioError(problems)
    folder = path.absolute().parent
    wrong = [
        (at, f"does not exist: {file}")
        for at, file in _files_of_traffic(scenario.workload, folder)
        if not Path(file).is_file()
    ]
    if wrong := [*wrong, *unknown(scenario)]:
        raise ScenarioError([Problem(str(path), located.line(at), dotted(at), message) for at, message in wrong])
    return _with_recorded_traffic(_with_absolute_paths(scenario, folder))


def check(source: str | Path, unknown: Unknown = _nothing) -> list[Problem]:
    """Everything wrong with a scenario; empty when `load` accepts it."""
    try:
        load(source, unknown)
    except ScenarioError as err:
        return err.problems
    return []


def dump_yaml(scenario: Scenario) -> str:
    """The scenario with every default written out. `load` reads it back equal."""
    out = StringIO()
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(_styled(scenario.model_dump(mode="json", exclude_none=True)), out)
    return out.getvalue()


def json_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file, so that editors complete and check it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Scenario.model_json_schema(),
    }


def schema_text() -> str:
    """`json_schema` as it is stored in ``SCHEMA_FILE``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _find(source: str | Path) -> Path:
    """A bare word is a name of the catalogue before it is a file."""
    if isinstance(source, str) and source in (ready := catalogue()):
        return ready[source]
    return Path(source)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as err:
        raise _refusal(path, f"does not exist{_nearest(path)}") from err
    except IsADirectoryError as err:
        raise _refusal(path, "is a folder; give one scenario file") from err
    except OSError as err:
        raise _refusal(path, f"cannot be read: {err.strerror}") from err
    if len(content) > LARGEST_FILE_BYTES:
        raise _refusal(path, f"is too large to be a scenario: {len(content):,} bytes")
    return content


def _refusal(path: Path, message: str) -> ScenarioError:
    return ScenarioError([Problem(str(path), None, "", message)])


def _nearest(path: Path) -> str:
    ready = catalogue()
    near = difflib.get_close_matches(path.stem, ready, n=1)
    return f"; did you mean `{near[0]}` of the catalogue?" if near else f"; the catalogue has {', '.join(ready)}"


def _with_absolute_paths(scenario: Scenario, folder: Path) -> Scenario:
    """What the file says relative to itself, absolute: model, JSONL tasks, earlier studies, the interpreter."""
    model, engine, quality = scenario.model, scenario.engine, scenario.quality
    if model.path is not None:
        model = model.model_copy(update={"path": _absolute(model.path, folder)})
    if model.draft is not None and model.draft.path is not None:
        draft = model.draft.model_copy(update={"path": _absolute(model.draft.path, folder)})
        model = model.model_copy(update={"draft": draft})
    if engine.python is not None and "/" in engine.python:
        engine = engine.model_copy(update={"python": _absolute(engine.python, folder)})
    tasks = tuple(
        t.model_copy(update={"task": _absolute(t.task, folder)}) if "/" in t.task or t.task.endswith(".jsonl") else t
        for t in quality.tasks
    )
    quality = quality.model_copy(update={"tasks": tasks})
    search = scenario.search
    search = search.model_copy(update={"transfer": tuple(absolute_study(name, folder) for name in search.transfer)})
    workload = _workload(scenario.workload, folder)
    changed = {"model": model, "engine": engine, "quality": quality, "search": search, "workload": workload}
    return scenario.model_copy(update=changed)


def absolute_study(name: str, folder: Path) -> str:
    """An earlier study's run folder, named relative to ``folder``, absolute; what MLflow keeps stays as it is."""
    return name if name.startswith("mlflow:") else _absolute(name, folder)


def _files_of_traffic(workload: Workload, folder: Path) -> Iterator[tuple[KeyPath, str]]:
    """Where a file is named, and which."""
    sections: list[tuple[KeyPath, Traffic]] = [(("workload",), workload)]
    sections += [(("workload", "classes", i), c) for i, c in enumerate(workload.classes)]
    for at, traffic in sections:
        turns = traffic.sessions.turns if traffic.sessions else None
        named = {
            ("trace",): traffic.trace,
            ("prompt_tokens",): traffic.prompt_tokens,
            ("output_tokens",): traffic.output_tokens,
            ("sessions", "turns"): turns,
        }
        for key, holder in named.items():
            if holder is not None and holder.file is not None:
                yield (*at, *key, "file"), _absolute(holder.file, folder)


def _workload(workload: Workload, folder: Path) -> Workload:
    """Absolute paths and the digests of the files of traffic. Raises TraceError where they cannot be read."""

    def located(named: TFile) -> TFile:
        if named is None or named.file is None:
            return named
        file = _absolute(named.file, folder)
        return named.model_copy(update={"file": file, "sha256": traces.sha256(file, named.sha256)})

    def with_files(traffic: TTraffic) -> TTraffic:
        sessions = traffic.sessions
        if sessions is not None:
            sessions = sessions.model_copy(update={"turns": located(sessions.turns)})
        lengths = {name: located(getattr(traffic, name)) for name in ("prompt_tokens", "output_tokens")}
        return traffic.model_copy(update={**lengths, "sessions": sessions, "trace": located(traffic.trace)})

    classes = tuple(with_files(c) for c in workload.classes)
    return with_files(workload).model_copy(update={"classes": classes})


def _with_recorded_traffic(scenario: Scenario) -> Scenario:
    """Every file of traffic read once, so that what is wrong with it is said now; a trace's own rate filled in."""
    workload = scenario.workload
    for traffic in (workload, *workload.classes):
        if traffic.trace is not None:
            replay(traffic.trace)
        turns = traffic.sessions.turns if traffic.sessions else None
        for drawn in (traffic.prompt_tokens, traffic.output_tokens, turns):
            if drawn is not None and drawn.file is not None:
                numbers(drawn)
    arrivals = workload.arrivals
    if arrivals.process != "trace" or arrivals.rate is not None or scenario.objective == "goodput":
        return scenario
    assert workload.trace is not None
    arrivals = arrivals.model_copy(update={"rate": Rate(rps=replay(workload.trace).rate_rps)})
    return scenario.model_copy(update={"workload": workload.model_copy(update={"arrivals": arrivals})})


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder / Path(path).expanduser())


def _styled(value: Any) -> Any:
    """Sections in blocks, lists of values on one line, words in quotes that would be read as something else."""
    if isinstance(value, dict):
        return CommentedMap({key: _styled(v) for key, v in value.items()})
    if isinstance(value, list):
        items = CommentedSeq([_styled(v) for v in value])
        if not any(isinstance(v, dict) for v in value):
            items.fa.set_flow_style()
        return items
    if isinstance(value, str) and (value.lower() in READ_AS_BOOLEAN_BY_OTHERS or value.startswith("?")):
        return DoubleQuotedScalarString(value)
    return value
