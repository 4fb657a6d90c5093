from stillhouse.testing import DomainSuite


class TestPointcloud(DomainSuite):
    domain = "pointcloud"
