from stillhouse.testing import DomainSuite


class TestVision(DomainSuite):
    """vision/distill is the run that every other change is held against."""

    domain = "vision"
    slow = ("diswot", "kd3", "knfu")
