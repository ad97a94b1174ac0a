"""Python's garbage collector in a process that runs for months.

What a start makes (modules, classes, compiled schemas, rooms) lives as long as the process, and the collector walks all
of it again whenever enough new objects have survived: at thousands of commands a second that was a fifth of a node's
time, and each walk stops the event loop. Messages, rows and reports hold no cycles and are freed by their reference
counts; what does (a failed call's traceback, a connection and its tasks) is still collected, only less often.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_OBJECTS = 10_000
"""New containers that make the collector look at the youngest; Python's own 700 is a few dozen commands."""


@contextmanager
def starting() -> Iterator[None]:
    """What runs in this starts a process: the collector would find nothing, and takes a tenth of the time. It looks
    again once `settle_heap` was called, or when this is left."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle_heap() -> None:
    """Take everything alive out of the collector's walks, and walk the rest less often.

    Call it once, when all that lives as long as the process has been made.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    gc.enable()
