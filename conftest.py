"""For every test: the kernel's shapes and types are checked; nothing is written outside."""

import sys
import types
from pathlib import Path

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

CHECKED = (
    "cache",
    "checkpoint",
    "data",
    "engine",
    "export",
    "federated",
    "metrics",
    "objectives",
    "profile",
    "quantize",
    "refreshing",
    "search",
    "stages",
    "training",
    "phase_state",
)
# before any of it is imported: jaxtyping and beartype check each call against its annotations
checker = types.ModuleType("stillhouse_checker")
checker.check = beartype(
    conf=BeartypeConf(is_pep484_tower=True)
)  # an int is a float, as in PEP 484
sys.modules[checker.__name__] = checker
PLUGINS = (
    "stillhouse_landmarks.metrics",
    "stillhouse_landmarks.objectives",
    "stillhouse_pointcloud.detectors",
    "stillhouse_pointcloud.metrics",
    "stillhouse_pointcloud.objectives",
    "stillhouse_pointcloud.overlaps",
    "stillhouse_sam.prompting",
    "stillhouse_sam.metrics",
    "stillhouse_sam.objectives",
    "stillhouse_sam.prompts",
)
install_import_hook(
    [*(f"stillhouse.{name}" for name in CHECKED), *PLUGINS], "stillhouse_checker.check"
)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home: Path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("STILLHOUSE_HOME", str(home))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    # one thread a worker: faster on small tensors, and sums in one order
    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Recipes' suites first, half of them in each half: two workers take a half each from its
    beginning, and the tests of a suite wait for one another's run.
    """
    suites: dict[str, list[pytest.Item]] = {}
    for item in items:
        recipe = getattr(getattr(item, "callspec", None), "params", {}).get("recipe")
        if isinstance(recipe, str):
            suites.setdefault(f"{item.nodeid.partition('::test_')[0]} {recipe}", []).append(item)
    chosen = list(suites.values())
    ours = {item for suite in chosen for item in suite}
    rest = [item for item in items if item not in ours]
    first, second = ([i for suite in chosen[start::2] for i in suite] for start in (0, 1))
    here = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *rest[:here], *second, *rest[here:]]
