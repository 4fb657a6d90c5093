"""Tests of plugins: subclass `DomainSuite` and name the domain.

from stillhouse.testing import DomainSuite

class TestDomain(DomainSuite):
    domain = "vision"
"""

import pytest

# its asserts explain themselves in other people's test runs, too
pytest.register_assert_rewrite("stillhouse.testing.suite", "stillhouse.testing.killing")

from stillhouse.testing.suite import DomainSuite as DomainSuite  # noqa: E402

__all__ = ["DomainSuite"]
