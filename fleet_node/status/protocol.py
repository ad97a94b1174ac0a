"""The control socket's protocol: a line of JSON asks, a line answers, then the asker closes the connection.

Request `{"ask": "status"}`, answer `{"ok": true, "answer": ...}` or `{"ok": false, "error": "..."}`. While a long
answer is being made, lines `{"working": {"done": 3, "of": 8}}` go before it, one in `WORKING_EVERY_S` at least. What it
names is the asker's until it closes the connection; an asker that closes early ends the work. The socket stands in the
node's state folder (0700) and is 0600 itself: it is as private as the node's keys, so nothing on it is signed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_REQUEST_BYTES = 4 * 1024
MAX_ANSWER_BYTES = 256 * 1024
TIMEOUT_S = 5.0
"""For which either side waits for the next line of the other."""
WORKING_EVERY_S = 1.0
TAKEN_WITHIN_S = 300.0
"""For which what a long answer names is kept for an asker that does not close the connection."""
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
