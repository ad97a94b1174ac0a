"""What the C library's allocator is told before gRPC takes memory from it.

A TLS connection holds two buffers of 17 KiB (BoringSSL's BIO pair) and hardly ever touches more than a page of each.
From the heap they come out of memory that a handshake or a connection before them has written to, and such pages are
resident whether or not they are used again. With pages of their own they cost what they hold, which is some 15 KiB
less for an idle node.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_OWN_PAGES_FROM_BYTES = 16 * 1024
_KEPT_BYTES = 16 * 1024 * 1024  # at the heap's end; 128 KiB once anything is set, which come and go all the time
_MOST_MAPPINGS = 40_000  # 20,000 connections; Linux allows a process 65,530, and threads and Python need some


def map_large_buffers() -> bool:
    """Give allocations of 16 KiB and more pages of their own; beyond 40,000 of them the heap serves as before.

    Returns:
        Whether the C library knows of it: glibc does, others are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = (
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_MMAP_MAX, _MOST_MAPPINGS),
        (_M_MMAP_THRESHOLD, _OWN_PAGES_FROM_BYTES),
    )
    return all(mallopt(option, value) == 1 for option, value in options)
