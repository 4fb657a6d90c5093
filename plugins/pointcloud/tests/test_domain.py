from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest

from stillhouse.testing import DomainSuite

# a run and a second, killed one of every stage, beside another worker on two cores
pytestmark = pytest.mark.timeout(1500)


class TestPointcloud(DomainSuite):
    """All rows of `tiny`, trained for fewer steps."""

    domain = "pointcloud"
    slow = ("pointdistiller",)
    assignments: ClassVar[Mapping[str, Sequence[str]]] = {
        "pointdistiller": ("steps=20", "teacher_steps=40")
    }
