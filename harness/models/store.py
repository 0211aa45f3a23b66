"""The models on this machine: a cache of published files and of the variants built from them.

Knows nothing of engines or of the GGUF format's inside. One folder per model, one lock per folder; a file
appears under its name only when it is whole, and beside it its manifest: what it is, how it was made, its digest.
A file whose size and modification time are as recorded is taken as whole; otherwise its digest is computed.
"""

import difflib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from harness.engines.base import ResolvedModel
from harness.errors import ModelCorrupt, ModelNotFound
from harness.host import limits
from harness.measurement import Record
from harness.models import calibration, gguf_variants, hf_convert, hugging_face, quantise, schemes
from harness.models.catalog import KNOWN, KnownModel
from harness.models.fetch import download
from harness.models.folders import cache_folder, file_sha256, locked, remembered_sha256, replace
from harness.models.gguf_header import read_header
from harness.models.gguf_variants import FULL_PRECISION, METHODS, ON_REQUEST
from harness.models.hf_shape import CONFIG
from harness.progress import Progress, silent
from scenarios.errors import UserError
from scenarios.spec import ModelRef

State = Literal["ready", "missing", "corrupt", "on the hub"]


class Manifest(Record):
    """What a file is. ``source_sha256``: of the published file it was built from; None: it is that file."""

    variant: str
    method: str
    sha256: str
    size_bytes: int
    mtime_ns: int
    source_sha256: str | None
    gguf_version: str


class VariantInfo(Record):
    variant: str
    state: State
    size_bytes: int | None = None
    sha256: str | None = None


class ModelInfo(Record):
    name: str
    license: str
    variants: tuple[VariantInfo, ...]


def resolve(ref: ModelRef, *, build: bool, on_progress: Progress = silent) -> ResolvedModel:
    """The files of every variant that is there; with ``build``, what is missing is fetched and built first.

    Raises ModelNotFound, ModelCorrupt (damaged files are never replaced behind one's back), DownloadFailed.
    """
    found = _resolve(ref, build, on_progress)
    if ref.draft is None or not (ref.draft.name or ref.draft.path):
        return found
    own = ModelRef(name=ref.draft.name, path=ref.draft.path, context_tokens=ref.context_tokens)
    return found.with_draft(_resolve(own, build, on_progress))


def _resolve(ref: ModelRef, build: bool, on_progress: Progress) -> ResolvedModel:
    if ref.served_as is not None or ref.simulated is not None:
        return ResolvedModel(ref, ref.label, reference_variant="")
    if (published := _published(ref)) is not None:
        return quantise.with_built(published)
    model = _known(ref.label) if ref.path is None else _local(Path(ref.path).expanduser().resolve())
    if build:
        model.fill(model.wanted, on_progress, replace_corrupt=False)
    found = {variant: manifest for variant in model.possible if (manifest := model.check(variant))}
    if model.reference not in found:
        raise ModelNotFound(
            f"{ref.label}: its reference variant {model.reference} is not on this machine; "
            f"run: autotune models build {ref.label}"
        )
    return ResolvedModel(
        ref=ref,
        label=ref.label,
        reference_variant=model.reference,
        variants={variant: model.file(variant) for variant in found},
        digests={variant: manifest.sha256 for variant, manifest in found.items()},
    )


def _published(ref: ModelRef) -> ResolvedModel | None:
    """A model in Hugging Face format, without what is built of it; None: it is in another format."""
    if ref.path is not None and (folder := Path(ref.path).expanduser().resolve()).is_dir():
        return hugging_face.in_folder(ref, folder, remembered_sha256)
    if ref.name in hugging_face.HUB:
        return hugging_face.of_hub(ref, hugging_face.HUB[ref.name], cache_folder(), remembered_sha256)
    return None


def fetch(name: str, on_progress: Progress = silent) -> Path:
    """The published file of a known model, downloaded if it is missing or damaged."""
    model = _known(name)
    model.fill((model.original,), on_progress, replace_corrupt=True)
    return model.file(model.original)


def build(
    name: str,
    variants: tuple[str, ...] = (),
    on_progress: Progress = silent,
    *,
    calibration_samples: int | None = None,
) -> dict[str, Path]:
    """These variants, built if missing or damaged; default: all of a GGUF file, the published one of other models.

    ``name``: a known model, the path of a GGUF file, or of a folder in Hugging Face format.
    """
    local = Path(name).expanduser()
    if name in hugging_face.HUB or (name not in KNOWN and local.is_dir()):
        return _build_checkpoints(name, variants, calibration_samples, on_progress)
    if calibration_samples is not None:
        raise UserError("--calibration-samples has a meaning only for a model in Hugging Face format")
    model = _local(local.resolve()) if name not in KNOWN and local.is_file() else _known(name)
    for variant in variants:
        if variant not in model.possible:
            raise UserError(f"{name}: scheme of a GGUF file must be one of {', '.join(model.possible)}, got {variant}")
    wanted = variants or model.wanted
    model.fill(wanted, on_progress, replace_corrupt=True)
    return {variant: model.file(variant) for variant in wanted}


def _build_checkpoints(
    name: str, wanted: tuple[str, ...], calibration_samples: int | None, on_progress: Progress
) -> dict[str, Path]:
    """Raises UserError for what cannot be built, before anything is."""
    known = hugging_face.HUB.get(name)
    asked = [schemes.named(scheme) for scheme in wanted]
    if not asked:
        if known is None:
            raise UserError(f"{name} is there; say what to make of it: --scheme {', '.join(schemes.SCHEMES)}")
        return _build_of_hub(known, on_progress)
    ref = ModelRef(name=name) if known else ModelRef(path=name)
    model = _published(ref)
    assert model is not None
    if model.repositories and known and known.gguf:
        _build_of_hub(known, on_progress)
        model = _published(ref) or model
    if calibration_samples is not None and not any(scheme.calibrated for scheme in asked):
        raise UserError(f"--calibration-samples: {', '.join(wanted)} is not calibrated; leave it out")
    requests = [
        quantise.request(model, scheme, limits(), calibration_samples or calibration.SAMPLES) for scheme in asked
    ]
    return {ask.scheme: quantise.build(model, ask, on_progress) for ask in requests}


def _build_of_hub(model: hugging_face.HubModel, on_progress: Progress) -> dict[str, Path]:
    """Raises UserError where it can only be fetched by the engine that serves it."""
    if model.gguf is None:
        raise UserError(f"{model.name} is not built here: the engine fetches {model.repository} from the hub itself")
    source = build(model.gguf, ("f16",), on_progress)["f16"]
    folder = hugging_face.built_folder(model, cache_folder())
    with locked(folder.with_name(f"{folder.name}-lock"), on_progress, model.name) as scratch:
        on_progress(0, 1, f"{model.name}: Hugging Face format")
        part = hf_convert.convert(source, scratch / "model")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    return {hugging_face.PUBLISHED: folder}


def list_models(*, verify: bool = False, on_progress: Progress = silent) -> tuple[ModelInfo, ...]:
    """Every known model with the state of its variants; ``verify`` computes every digest anew."""
    infos: list[ModelInfo] = []
    file_digest = file_sha256 if verify else remembered_sha256
    for known in KNOWN.values():
        model = _known(known.name)
        variants = []
        for number, variant in enumerate(model.possible):
            on_progress(number, len(model.possible), f"{known.name} {variant}")
            info = model.info(variant, verify=verify)
            if info.state != "missing" or variant in model.wanted:
                variants.append(info)
        infos.append(ModelInfo(name=known.name, license=known.license, variants=tuple(variants)))
    hub = (
        ModelInfo(name=m.name, license=m.license, variants=tuple(_checkpoints(m, file_digest)))
        for m in hugging_face.HUB.values()
    )
    return (*infos, *hub)


def _checkpoints(hub: hugging_face.HubModel, file_digest: Callable[[Path], str]) -> Iterator[VariantInfo]:
    """Those that are here. A model that cannot be built is fetched by the engine that serves it."""
    model = hugging_face.of_hub(ModelRef(name=hub.name), hub, cache_folder(), file_digest)
    published = hugging_face.built_folder(hub, cache_folder())
    if (published / CONFIG).is_file():
        yield VariantInfo(
            variant=hugging_face.PUBLISHED,
            state="ready",
            size_bytes=sum(file.stat().st_size for file in published.iterdir()),
            sha256=model.digests[hugging_face.PUBLISHED],
        )
    else:
        yield VariantInfo(variant=hugging_face.PUBLISHED, state="missing" if hub.gguf else "on the hub")
    for scheme in schemes.SCHEMES:
        try:
            made = quantise.check(model, scheme, file_digest)
        except ModelCorrupt:
            yield VariantInfo(variant=scheme, state="corrupt")
            continue
        if made is not None:
            yield VariantInfo(variant=scheme, state="ready", size_bytes=made.size_bytes, sha256=made.digest)


@dataclass(frozen=True, slots=True)
class _Model:
    """One model's folder. ``published``: the file that all others are built from, if not of this folder."""

    label: str
    folder: Path
    original: str
    sha256: str
    known: KnownModel | None = None
    published: Path | None = None

    @property
    def reference(self) -> str:
        return self.original if self.original in FULL_PRECISION else "f16"

    @property
    def possible(self) -> tuple[str, ...]:
        """All variants, highest precision first."""
        built = [v for v in METHODS if v not in FULL_PRECISION]
        return tuple(dict.fromkeys([self.reference, built[0], self.original, *built[1:]]))

    @property
    def wanted(self) -> tuple[str, ...]:
        """Those that are built without being asked for."""
        return tuple(v for v in self.possible if v == self.original or v not in ON_REQUEST)

    def file(self, variant: str) -> Path:
        if variant == self.original and self.published is not None:
            return self.published
        return self.folder / f"{variant}.gguf"

    def manifest(self, variant: str) -> Manifest | None:
        path = self.folder / f"{variant}.json"
        if not path.exists():
            return None
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except ValidationError as err:
            raise ModelCorrupt(f"{path}: not a manifest of ours; {self._mend(variant)}") from err

    def check(self, variant: str, *, verify: bool = False) -> Manifest | None:
        """The manifest of a whole file; None: not there. Raises ModelCorrupt."""
        path = self.file(variant)
        if path == self.published:
            return self._describe(variant, "local file", self.sha256, None)
        manifest = self.manifest(variant)
        if manifest is None or not path.exists():
            return None
        stat = path.stat()
        if not verify and (stat.st_size, stat.st_mtime_ns) == (manifest.size_bytes, manifest.mtime_ns):
            return manifest
        got = file_sha256(path)
        if got != manifest.sha256:
            raise ModelCorrupt(f"{path}: sha256 must be {manifest.sha256}, got {got}; {self._mend(variant)}")
        return self._record(variant, manifest.method, got, manifest.source_sha256)

    def info(self, variant: str, *, verify: bool) -> VariantInfo:
        try:
            manifest = self.check(variant, verify=verify)
        except ModelCorrupt:
            return VariantInfo(variant=variant, state="corrupt")
        if manifest is None:
            return VariantInfo(variant=variant, state="missing")
        return VariantInfo(variant=variant, state="ready", size_bytes=manifest.size_bytes, sha256=manifest.sha256)

    def _mend(self, variant: str) -> str:
        if variant == self.original and self.known:
            return f"run: autotune models fetch {self.label}"
        return f"run: autotune models build {self.label} --variant {variant}"

    def fill(self, variants: tuple[str, ...], on_progress: Progress, *, replace_corrupt: bool) -> None:
        """Makes what is missing, the published file first."""
        with locked(self.folder, on_progress, self.label) as scratch:
            for variant in dict.fromkeys((self.original, *variants)):
                try:
                    if self.check(variant):
                        continue
                except ModelCorrupt:
                    if not replace_corrupt:
                        raise
                if variant == self.original:
                    self._obtain(scratch, on_progress)
                else:
                    self._convert(variant, scratch, on_progress)

    def _obtain(self, scratch: Path, on_progress: Progress) -> None:
        assert self.known is not None
        part = download(self.known, scratch, on_progress)
        got = file_sha256(part)
        if got != self.sha256:
            raise ModelCorrupt(
                f"{self.label}: the downloaded file's sha256 must be {self.sha256}, got {got}; nothing was kept. "
                "A proxy or mirror may have changed it: try another index"
            )
        self._keep(part, self.original, "as published", self.sha256, None)

    def _convert(self, variant: str, scratch: Path, on_progress: Progress) -> None:
        part = scratch / f"{variant}.gguf"
        sha256 = gguf_variants.convert(self.file(self.original), part, variant, on_progress)
        self._keep(part, variant, f"{variant} of every matrix, round to nearest", sha256, self.sha256)

    def _keep(self, part: Path, variant: str, method: str, sha256: str, source_sha256: str | None) -> None:
        """Old manifest away, new file in place, new manifest: a file without one counts as missing."""
        (self.folder / f"{variant}.json").unlink(missing_ok=True)
        replace(part, self.file(variant))
        self._record(variant, method, sha256, source_sha256)

    def _record(self, variant: str, method: str, sha256: str, source_sha256: str | None) -> Manifest:
        manifest = self._describe(variant, method, sha256, source_sha256)
        part = self.folder / f"{variant}.{os.getpid()}.part"
        part.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        replace(part, self.folder / f"{variant}.json")
        return manifest

    def _describe(self, variant: str, method: str, sha256: str, source_sha256: str | None) -> Manifest:
        stat = self.file(variant).stat()
        return Manifest(
            variant=variant,
            method=method,
            sha256=sha256,
            size_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            source_sha256=source_sha256,
            gguf_version=importlib.metadata.version("gguf"),
        )


def _known(name: str) -> _Model:
    known = KNOWN.get(name)
    if known is None:
        near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.4)
        hint = f"; did you mean `{near[0]}`? run: autotune models fetch {near[0]}" if near else ""
        raise ModelNotFound(f"no model named `{name}`{hint} (known: {', '.join(KNOWN)}; or give model.path)")
    return _Model(name, cache_folder() / name, known.variant, known.sha256, known=known)


def _local(path: Path) -> _Model:
    """A file of the user's, never copied; what is built from it is kept by its digest."""
    header = read_header(path)
    if header.values.get("split.count", 1) > 1:
        raise UserError(f"{path}: one part of a split model; join the parts first: llama-gguf-split --merge")
    sha256 = remembered_sha256(path)
    return _Model(
        str(path), cache_folder() / f"local-{sha256[:16]}", gguf_variants.own_variant(header), sha256, published=path
    )
