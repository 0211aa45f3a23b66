"""What this machine is."""

import pytest

from harness.host import computes_bfloat16, processor_flags


@pytest.mark.parametrize(
    ("cpuinfo", "computes"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 f16c\nbugs\t\t: bf16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("processor\t: 0\n", True),
    ],
)
def test_the_kernel_s_flags_say_what_the_processor_computes_in(tmp_path, cpuinfo, computes):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert computes_bfloat16(processor_flags(str(tmp_path / "cpuinfo"))) == computes


def test_a_kernel_that_does_not_tell_has_told_nothing(tmp_path):
    assert processor_flags(str(tmp_path / "none")) == frozenset()
