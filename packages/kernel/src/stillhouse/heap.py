"""Memory of this process that nothing uses any more, returned to the system."""

import ctypes
import gc
import sys


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
