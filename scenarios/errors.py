"""The roots of the error tree: everything that can go wrong and that we have a word for.

AutotuneError
├── UserError                 exit 2: the person can mend it
│   ├── ScenarioError         … in a scenario file: file, line, key, got, allowed
│   │   └── TraceError        … in a file of recorded traffic that it names
│   └── …                     harness/errors.py
├── Infrastructure            exit 3: the machine must be mended
└── …                         harness/errors.py: what a trial can end with
"""

from dataclasses import dataclass


class AutotuneError(Exception):
    """Anything we raise on purpose. Its text is complete: printed without a traceback."""

    exit_code = 3


class UserError(AutotuneError):
    """What was asked cannot be done as asked; the message says what to change."""

    exit_code = 2


class Infrastructure(AutotuneError):
    """This machine cannot do it now: disk full, download failed, tool missing."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file, as one line for a person."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}  {self.key}  {self.message}" if self.key else f"{where}  {self.message}"


class ScenarioError(UserError):
    """A scenario file was refused. Holds every problem found, not just the first."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(p) for p in problems))


class TraceError(ScenarioError):
    """A file of recorded traffic (or of lengths) was refused. Holds the first problems found in it."""
