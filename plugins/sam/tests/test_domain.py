from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest

from stillhouse.testing import DomainSuite

# a run and a second, killed one of every stage, beside another worker on two cores
pytestmark = pytest.mark.timeout(1500)


class TestSam(DomainSuite):
    """The method, its baseline and 8 bits; `tiny` with all its rows and studies is slow."""

    domain = "sam"
    slow = ("tinysam",)
    assignments: ClassVar[Mapping[str, Sequence[str]]] = {
        "tinysam": ("students=embedding,weighting", "bits=[8]", "compared=false", "everything=1")
    }


@pytest.mark.slow
class TestAllOfTinySam(DomainSuite):
    domain = "sam"
