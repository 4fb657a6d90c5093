from stillhouse.testing import DomainSuite


class TestVision(DomainSuite):
    domain = "vision"
