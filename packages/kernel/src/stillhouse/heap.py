"""Memory of this process that nothing uses any more, returned to the system."""

import ctypes
import gc
import sys

GROWN = 128 << 20  # bytes; `trim` walks over every object there is, for a second and more
_held = 0  # resident bytes when it was last trimmed


def trim_grown() -> bool:
    """`trim` where the process has grown by more than `GROWN` since it was last trimmed; whether it
    was.
    """
    global _held
    if resident_bytes() - _held <= GROWN:
        return False
    trim()
    _held = resident_bytes()
    return True


def allocate_as_the_system() -> None:
    """Have Arrow allocate as the system does: its own allocator (mimalloc) keeps what a stage has
    freed, hundreds of MB of it, from all that follow.
    """
    import pyarrow as pa  # slow to import

    pa.set_memory_pool(pa.system_memory_pool())


def resident_bytes() -> int:
    import psutil  # slow to import

    return psutil.Process().memory_info().rss


def trim() -> None:
    """Free what only circles of references hold, and have glibc return its free pages, which it
    keeps otherwise for as long as the process lives. With another C library only the former.
    """
    gc.collect()
    if not sys.platform.startswith("linux"):
        return
    try:
        release = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # another C library
        return
    release(0)
