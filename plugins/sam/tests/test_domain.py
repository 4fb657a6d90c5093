from stillhouse.testing import DomainSuite


class TestSam(DomainSuite):
    domain = "sam"
