"""What the allocator is told: in a process of its own, for it stays told."""

import subprocess
import sys

import pytest

_SCRIPT = """
import ctypes
from fleet_server.allocator import map_large_buffers

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
if not hasattr(libc, "mallinfo2"):
    raise SystemExit(77)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
assert map_large_buffers()
before = libc.mallinfo2()
for _ in range(2_000):
    libc.malloc({size})
after = libc.mallinfo2()
print(after.hblks - before.hblks)
"""


def _mapped(size_bytes: int) -> int:
    """How many of 2,000 allocations got pages of their own."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.replace("{size}", str(size_bytes))], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("this C library is not glibc 2.33 or later")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_connections_tls_buffers_get_pages_of_their_own() -> None:
    assert _mapped(17 * 1024) > 1_500


def test_what_is_small_stays_in_the_heap() -> None:
    assert _mapped(8 * 1024) == 0
