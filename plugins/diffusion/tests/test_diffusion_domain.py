import pytest

from stillhouse.testing import DomainSuite

# a run and a second, killed one of every stage, beside other work on two cores
pytestmark = pytest.mark.timeout(1500)


class TestDiffusion(DomainSuite):
    domain = "diffusion"
    slow = ("mixture", "msd")
