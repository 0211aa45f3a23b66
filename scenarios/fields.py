"""The base of everything that is asked, and the kinds of number it is made of.

Knows nothing of what they mean: spec.py and traffic.py do.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Burstiness = Annotated[float, Field(gt=0, le=100)]
Variation = Annotated[float, Field(gt=0, le=10)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


def both_or_none(one_of_two: object) -> str:
    """What was given of two keys that exclude each other, when it was not exactly one."""
    return "none" if one_of_two is None else "both"
