"""The simulated engine's scheduler: small cases whose answer can be worked out by hand."""

import math

import numpy as np
import pytest

from harness.engines.simulated import hardware, virtual
from harness.engines.simulated.law import Law, Settings, plan_memory
from harness.errors import ConfigurationImpossible
from scenarios.errors import UserError


def test_one_request_takes_a_step_for_its_prompt_and_one_for_each_further_token():
    law = Law(Settings(), hardware.accelerator("h100"), hardware.model("8b"), 4096)
    one = np.array([100])
    served = virtual.serve(law, virtual.Requests(np.array([1.0]), one, one, one - 101, one * 0))
    assert served.steps == 100
    assert served.done_s[0] == pytest.approx(1.0 + served.busy_s)
    assert served.kv_blocks_free_at_end == served.kv_blocks
    assert served.kv_blocks_peak == math.ceil(199 / 16)


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(UserError, match="h100, a100, l40s, rtx4090, laptop-cpu"):
        hardware.accelerator("h1000")
    with pytest.raises(UserError, match="1b, 8b, 70b"):
        hardware.model("9b")


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic():
    with pytest.raises(ConfigurationImpossible, match="GiB of weights"):
        plan_memory(Settings(), hardware.accelerator("h100"), hardware.model("70b"), 4096)
