"""Python's cycle collector, set for a server.

One transaction at load makes tens of thousands of rows and reports that all live until it has committed. The
collector's defaults take them for long-lived, and then walk the whole heap, with every thread standing still: a quarter
of the server's CPU, in pauses of 0.2 s. What a start has built stays until the end, so it need not be walked at all.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 10_000
"""New containers before the youngest generation is walked: above what one transaction keeps alive at once."""


def settle() -> None:
    """Call once, when everything that lives until the end has been built."""
    gc.collect()
    gc.freeze()
    _, *older = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *older)
