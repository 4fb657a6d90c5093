"""Freed memory goes back to the system."""

import platform
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from stillhouse import heap
from stillhouse.heap import GROWN, trim, trim_grown
from stillhouse.runs import Runs, run_stage
from stillhouse.settings import make_recipe, make_settings

from .toys import SITE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that keeps free pages")
def test_what_was_freed_between_kept_blocks_is_returned() -> None:
    process = psutil.Process()
    blocks = [np.ones(16 << 10, dtype=np.uint8) for _ in range(10_000)]  # 160 MB below mmap's bound
    kept = blocks[-1]  # holds the top of the heap: only a trim returns what lies under it
    del blocks
    before = process.memory_info().rss
    trim()
    assert before - process.memory_info().rss > 100_000_000
    assert kept.sum() == 16 << 10


def test_circles_are_freed() -> None:
    class Node:
        alive = 0

        def __init__(self) -> None:
            Node.alive += 1
            self.self = self

        def __del__(self) -> None:
            Node.alive -= 1

    Node()
    trim()
    assert Node.alive == 0


def test_a_process_is_trimmed_when_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, trims = iter([GROWN + 1, 5, GROWN + 5, GROWN + 6, 9]), list[None]()
    monkeypatch.setattr(heap, "_held", 0)
    monkeypatch.setattr(heap, "resident_bytes", lambda: next(sizes))
    monkeypatch.setattr(heap, "trim", lambda: trims.append(None))
    # 5 are left after the first, so that GROWN + 5 is no growth beyond it, and one more is
    assert [trim_grown() for _ in range(3)] == [True, False, True]
    assert len(trims) == 2
    assert list(sizes) == []


def test_the_size_of_this_process_is_that_which_the_system_gives() -> None:
    assert heap.resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


def test_a_stage_has_arrow_return_what_it_frees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mimalloc, Arrow's default, would keep it for as long as the process lives."""
    monkeypatch.syspath_prepend(str(SITE))
    recipe = make_recipe("toy/toy", make_settings("toy/toy", "tiny"))
    runs = Runs(root=tmp_path, recipe="toy/toy", variant="tiny")
    before = pa.default_memory_pool()
    try:
        pa.set_memory_pool(pa.mimalloc_memory_pool())
        run_stage(recipe, recipe.stage("data"), runs)
        assert pa.default_memory_pool().backend_name == "system"
    finally:
        pa.set_memory_pool(before)
