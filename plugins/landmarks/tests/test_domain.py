from stillhouse.testing import DomainSuite


class TestLandmarks(DomainSuite):
    domain = "landmarks"
