"""Names for run folders: a finished study is never written over."""

import re
from pathlib import Path

from scenarios.errors import UserError

RUNS = Path("runs")


def fresh_folder(name: str, below: Path = RUNS) -> Path:
    """below/name, or name-2, name-3 …: the first that does not exist."""
    number, folder = 1, below / name
    while folder.exists():
        number += 1
        folder = below / f"{name}-{number}"
    return folder


def study_folder(run: Path | None, name: str, *, resume: bool) -> Path:
    """Where a study lives: as told, else a fresh runs/<name>; with ``resume`` one that is there."""
    if run is not None:
        if (run / "ledger.jsonl").exists() and not resume:
            raise UserError(
                f"{run} already holds a study: add --resume to go on with it, or choose another --run folder"
            )
        return run
    if not resume:
        return fresh_folder(name)
    own = re.compile(re.escape(name) + r"(-\d+)?")
    taken = sorted(RUNS.glob("*/ledger.jsonl"), key=lambda path: path.stat().st_mtime)
    unfinished = [
        path.parent for path in taken if own.fullmatch(path.parent.name) and not (path.parent / "winner.json").exists()
    ]
    if not unfinished:
        raise UserError(f"--resume: there is no unfinished run of {name} in {RUNS}/")
    return unfinished[-1]


def make_folder(folder: Path) -> None:
    """Raises RunFolderUnusable."""
    from harness.ledger import unusable

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder, error) from error
