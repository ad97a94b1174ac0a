"""Which key a node signs probes with while its identity key is replaced.

Peers learn another key with their next snapshot, some moments after the server took it. So a node goes on with the key
that they know for a while, and they take either for longer (`in_force.FORMER_KEY_S`): an honest node whose key was just
rotated must not look like one that lies.
"""

from __future__ import annotations

from collections.abc import Callable

from fleet.clock import Clock
from fleet.envelope import Signer

HANDED_ON_S = 15.0
"""In which every peer has heard of another key: snapshots go out within some seconds."""


class SteadySigner:
    """See the module. Ask it every few seconds: what it is not asked, it does not notice.

    Args:
        current: the identity key in force.
        clock: the node's.
    """

    def __init__(self, current: Callable[[], Signer], clock: Clock) -> None:
        self._current = current
        self._clock = clock
        self._known = self._newest = current()
        self._since = 0.0

    def __call__(self) -> Signer:
        """The key to sign with now."""
        current = self._current()
        if current.public_key != self._newest.public_key:
            self._known, self._newest, self._since = self._newest, current, self._clock.monotonic()
        if self._clock.monotonic() - self._since >= HANDED_ON_S:
            self._known = self._newest
        return self._known
