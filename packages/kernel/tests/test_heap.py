"""Freed memory goes back to the system."""

import platform

import numpy as np
import psutil
import pytest

from stillhouse.heap import trim


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
