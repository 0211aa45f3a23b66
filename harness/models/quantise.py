"""Quantised checkpoints of a model in Hugging Face format: built in a builder's own environment, found again.

A checkpoint appears under its name only when it is whole, its manifest inside; what was left half-made is begun anew.
Knows nothing of engines that serve it.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness import guard
from harness.engines.base import HostLimits, ResolvedModel
from harness.engines.environments import interpreter
from harness.errors import EngineNotInstalled, ModelCorrupt
from harness.measurement import Record
from harness.models import builder_main, calibration, hugging_face, schemes
from harness.models.folders import cache_folder, file_sha256, locked, remembered_sha256
from harness.models.hf_shape import shape
from harness.models.schemes import Scheme
from harness.progress import Progress
from scenarios.errors import Infrastructure, UserError
from scenarios.space import digest

FileDigest = Callable[[Path], str]
MANIFEST = "autotune.json"
GRACE_S = 5.0
ROOM = 1.1  # of the checkpoint's expected size: tokenizer, configuration, what the builder keeps meanwhile
UNSUPPORTED = re.compile(
    r"not supported|[Uu]nsupported|does not recognize this architecture|Unrecognized (model|config)"
)
NAMED = re.compile(r"\b\w*(Error|Exception)\b: \S|Killed")


class Calibration(Record):
    """``sha256``: of the texts. ``tokens``: at most, of each sample."""

    sha256: str
    samples: int
    tokens: int


class CheckpointManifest(Record):
    """How a checkpoint was made. ``source_digest``, ``digest``: of configuration and weights."""

    scheme: str
    builder: str
    method: str
    settings: dict[str, Any]
    calibration: Calibration | None
    versions: dict[str, str]
    device: str
    source: str
    source_digest: str
    digest: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Request:
    """What the builder is asked. ``target`` None: it has no folder yet."""

    scheme: str
    builder: str
    source: str
    revision: str | None
    settings: Mapping[str, Any]
    texts: tuple[str, ...]
    tokens: int
    target: str | None = None

    @property
    def calibration(self) -> Calibration | None:
        if not self.texts:
            return None
        return Calibration(sha256=digest(list(self.texts)), samples=len(self.texts), tokens=self.tokens)


def request(model: ResolvedModel, scheme: Scheme, host: HostLimits, samples: int) -> Request:
    """Starts nothing. Raises UserError for a model that cannot be built so, or not here."""
    variant = model.reference_variant
    about = shape(model.variants[variant])
    schemes.check(scheme, about, host, samples * calibration.TOKENS)
    place, revision = model.repositories.get(variant, (str(model.variants[variant]), None))
    texts = calibration.samples(samples) if scheme.calibrated else ()
    return Request(
        scheme.name, scheme.builder, place, revision, schemes.settings(scheme, about), texts, calibration.TOKENS
    )


def home(model: ResolvedModel) -> Path:
    """Where its checkpoints are kept: of these very weights."""
    return cache_folder() / f"{model.label}-{model.digests[model.reference_variant][:12]}"


def with_built(model: ResolvedModel) -> ResolvedModel:
    """``model`` with every checkpoint that was built of it, and how to build the others. Raises ModelCorrupt."""
    if shape(model.variants[model.reference_variant]).quantized is not None:
        return model
    found = {name: check(model, name) for name in schemes.SCHEMES}
    return replace(
        model,
        variants={**model.variants, **{name: home(model) / name for name in found if found[name]}},
        digests={**model.digests, **{name: made.digest for name, made in found.items() if made}},
        unbuilt={name: f"it is not built; run: {_command(model, name)}" for name in found if not found[name]},
    )


def check(model: ResolvedModel, scheme: str, file_digest: FileDigest = remembered_sha256) -> CheckpointManifest | None:
    """The manifest of a whole checkpoint; None: there is none. Raises ModelCorrupt."""
    folder = home(model) / scheme
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        made = CheckpointManifest.model_validate_json(path.read_bytes())
    except ValidationError as err:
        raise ModelCorrupt(f"{path}: not a manifest of ours; run: {_command(model, scheme)}") from err
    got = hugging_face.digest_of(folder, file_digest)
    if got != made.digest:
        raise ModelCorrupt(f"{folder}: its digest must be {made.digest}, got {got}; run: {_command(model, scheme)}")
    return made


def _command(model: ResolvedModel, scheme: str) -> str:
    return f"autotune models build {shlex.quote(model.ref.label)} --scheme {scheme}"


def build(model: ResolvedModel, ask: Request, on_progress: Progress) -> Path:
    """The checkpoint's folder; one that was built of the same, and is whole, is kept.

    Raises EngineNotInstalled without the builder's environment, UserError for a model that the builder does not know,
    Infrastructure for a full disk, too little memory, and whatever else the builder ends with: its own last words.
    """
    scheme, place = schemes.SCHEMES[ask.scheme], home(model)
    target = place / scheme.name
    with locked(place, on_progress, f"{model.label} {scheme.name}") as scratch:
        if _is_built(model, ask):
            return target
        python = interpreter(scheme.builder)
        if python is None:
            raise EngineNotInstalled(
                f"building {scheme.name} needs {scheme.builder} in an environment of its own: "
                f"run `autotune engines install {scheme.builder}`"
            )
        _check_room(model, scheme, place)
        part = scratch / scheme.name
        started = time.monotonic()
        told = _run(python, replace(ask, target=str(part)), scratch, place / f"{scheme.name}.log", on_progress)
        made = CheckpointManifest(
            scheme=scheme.name,
            builder=scheme.builder,
            method=scheme.method,
            settings=dict(ask.settings),
            calibration=ask.calibration,
            versions=told["versions"],
            device=told["device"],
            source=ask.source if ask.revision is None else f"{ask.source}@{ask.revision}",
            source_digest=model.digests[model.reference_variant],
            digest=hugging_face.digest_of(part, file_sha256),
            size_bytes=sum(file.stat().st_size for file in part.iterdir()),
            seconds=round(time.monotonic() - started, 1),
        )
        (part / MANIFEST).write_text(made.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if target.exists():  # out of sight in one step: never half of it under its name
            target.replace(scratch / "old")
        part.replace(target)
    return target


def _is_built(model: ResolvedModel, ask: Request) -> bool:
    """As it is asked for; what is damaged, or was calibrated otherwise, is not."""
    try:
        made = check(model, ask.scheme)
    except ModelCorrupt:
        return False
    return made is not None and (made.settings, made.calibration) == (ask.settings, ask.calibration)


def _check_room(model: ResolvedModel, scheme: Scheme, place: Path) -> None:
    weights = shape(model.variants[model.reference_variant]).weight_bytes
    needed, free = ROOM * weights, shutil.disk_usage(place).free
    if free < needed:
        raise Infrastructure(
            f"{place}: {scheme.name} may take {needed / 1e9:.1f} GB on disk, {free / 1e9:.1f} GB are free; "
            "make room, or set AUTOTUNE_MODELS to a folder on another disk"
        )


def _run(python: str, ask: Request, scratch: Path, log: Path, on_progress: Progress) -> dict[str, Any]:
    """What the builder tells at its end. Whatever happens to us, it ends with us."""
    file = scratch / "request.json"
    file.write_text(json.dumps(asdict(ask)), encoding="utf-8")
    last: dict[str, Any] = {}
    with _guarded([python, builder_main.__file__, str(file)], scratch, log, offline=ask.revision is None) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = json.loads(line)
            if "done" in last:
                on_progress(last["done"], last["total"], f"{ask.scheme}: {last['what']}")
    if process.returncode != 0 or "versions" not in last:
        raise _failure(ask, log, process.returncode)
    return last


@contextlib.contextmanager
def _guarded(argv: list[str], folder: Path, log: Path, *, offline: bool) -> Iterator[subprocess.Popen[str]]:
    quiet = {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1", "TMPDIR": str(folder)}
    env = {**os.environ, **quiet, **({"HF_HUB_OFFLINE": "1"} if offline else {})}
    read_fd, write_fd = os.pipe()
    try:
        with log.open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(read_fd), str(GRACE_S), *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=folder,
                env=env,
                text=True,
                pass_fds=(read_fd,),
                start_new_session=True,
            )
    finally:
        os.close(read_fd)
    with process:
        try:
            yield process
            process.wait()
        finally:
            os.close(write_fd)


def _failure(ask: Request, log: Path, exit_code: int) -> Exception:
    lines = [
        line.strip() for line in log.read_text("utf-8", "replace").replace("\r", "\n").splitlines() if line.strip()
    ]
    text = "\n".join(lines[-50:])
    words = next((line for line in reversed(lines) if NAMED.search(line)), lines[-1] if lines else "it said nothing")
    where = f"all that {ask.builder} said is in {log}"
    if "No space left on device" in text:
        return Infrastructure(f"{ask.scheme}: the disk is full; make room, then build again ({where})")
    if exit_code == 128 + 9 or "MemoryError" in text or "can't allocate memory" in text:
        return Infrastructure(f"{ask.scheme}: out of memory while it was built ({where})")
    if UNSUPPORTED.search(words):
        return UserError(f"{ask.scheme}: {ask.builder} does not know this model: {words[:300]} ({where})")
    return Infrastructure(f"{ask.scheme} could not be built: {words[:300]}; {where}")
