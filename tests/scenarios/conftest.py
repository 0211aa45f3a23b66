"""What the tests of the scenarios room share."""

import pytest

from scenarios.traffic import Workload
from scenarios.words import Words


@pytest.fixture(scope="session")
def words() -> Words:
    """A vocabulary that stands for any: 200 distinct words."""
    return Words(tuple(f"w{i}" for i in range(200)), exact=True)


@pytest.fixture(scope="session")
def workload_of():
    """A workload from its arrivals, with one-word prompts unless told otherwise."""

    def make(process: str = "poisson", **changes) -> Workload:
        one = {"distribution": "fixed", "mean": 1.0}
        arrivals = {"process": process}
        if process == "gamma":
            arrivals["gap_cv"] = changes.pop("gap_cv")
        return Workload.model_validate({"arrivals": arrivals, "prompt_tokens": one, "output_tokens": one, **changes})

    return make
