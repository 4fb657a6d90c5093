import pytest

from stillhouse.testing import DomainSuite

# a run and a second, killed one of every stage, beside another worker on two cores
pytestmark = pytest.mark.timeout(1500)


class TestLandmarks(DomainSuite):
    domain = "landmarks"
    slow = ("two_teacher",)
