from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest

from stillhouse.testing import DomainSuite

# a run and a second, killed one of every stage, beside another worker on two cores
pytestmark = pytest.mark.timeout(2500)


class TestContracts(DomainSuite):
    """The data-free students and their baseline; `tiny` with all its rows and studies is slow."""

    domain = "contracts"
    slow = ("af_stip",)
    assignments: ClassVar[Mapping[str, Sequence[str]]] = {
        "af_stip": (
            "students=supervised,noise,generator,logistic",
            "exported=supervised",
            "steps=8",
            "teacher_steps=8",
            "folds=3",
            "fold_learners={text: [noise, logistic]}",
        )
    }


@pytest.mark.slow
class TestAllOfContracts(DomainSuite):
    domain = "contracts"
