"""The control socket's protocol: one line of JSON each way, then the connection closes.

Request `{"ask": "status"}`, answer `{"ok": true, "answer": ...}` or `{"ok": false, "error": "..."}`. The socket stands
in the node's state folder (0700) and is 0600 itself: it is as private as the node's keys, so nothing on it is signed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_REQUEST_BYTES = 4 * 1024
MAX_ANSWER_BYTES = 256 * 1024
TIMEOUT_S = 5.0
_MAX_ADDRESS_BYTES = 100
"""Less than the 108 bytes of sun_path (unix(7))."""


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """An address for `path` that fits into a socket address, however deep the state folder lies.

    A long path is reached through an open descriptor of its folder. The address is good within the context.
    """
    if len(os.fsencode(path)) <= _MAX_ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
