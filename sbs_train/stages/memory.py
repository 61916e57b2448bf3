"""Freed memory stays with the process while it trains: a setting of the process, so commands make it."""

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory; says whether it did.

    By default it hands large blocks back to the kernel and faults them in again on the next step. On the CPU that took
    up to half of a training step's time (docs/LOG.md); keeping them costs a few percent of memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 2**30))
