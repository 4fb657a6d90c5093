"""What a run ran on."""

import platform
import sys

import pytest

from stillhouse.environment import environment


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="reads Linux on x86"
)
def test_the_processor_is_told_with_its_vector_flags() -> None:
    found = environment("cpu")
    assert found["cpu"]
    flags = found["vector_flags"].split()
    assert "sse4_2" in flags  # torch's wheels need it
    assert "smep" not in flags
    assert flags == sorted(flags)
    assert found["gpu"] is None
    assert found["packages"]["torch"] in found["torch"]
