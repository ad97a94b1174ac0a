"""Which intents this node has used, and how late the people who signed them said it was: a copy of what the journal
holds, on the event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fleet.envelope import KEY_ID_BYTES


@dataclass(frozen=True, slots=True)
class Use:
    """One intent, used by one command. Times are Unix milliseconds.

    Args:
        intent_id: 16 bytes.
        seq: of the command that used it.
        issued_at_ms: when the people who signed it said it was.
        not_after_ms: when the intent ends.
        signing: key ids of those who signed it, 16 bytes each, one after the other.
    """

    intent_id: bytes
    seq: int
    issued_at_ms: int
    not_after_ms: int
    signing: bytes = b""

    @property
    def key_ids(self) -> frozenset[bytes]:
        """Who signed it."""
        return frozenset(self.signing[at : at + KEY_ID_BYTES] for at in range(0, len(self.signing), KEY_ID_BYTES))


class UsedIntents:
    """Remembers uses until people have signed something later than their end. No clock makes it forget: one that was
    wrong for an hour would let what was forgotten be used again.

    Args:
        uses: what the journal holds.
        latest_signed_ms: the latest time of issue of any intent that was used here, Unix milliseconds.
        issued_after_ms: when the node was last restored or adopted: it may know nothing of uses before.
    """

    def __init__(self, uses: Iterable[Use] = (), latest_signed_ms: int = 0, issued_after_ms: int = 0) -> None:
        self._by_id = {use.intent_id: use for use in uses}
        self.latest_signed_ms = latest_signed_ms
        self.issued_after_ms = issued_after_ms

    def __contains__(self, intent_id: object) -> bool:
        return intent_id in self._by_id

    def __iter__(self) -> Iterator[Use]:
        return iter(self._by_id.values())

    def of(self, seq: int) -> Use | None:
        """The use by the command of that seq."""
        return next((use for use in self if use.seq == seq), None)

    def add(self, uses: Iterable[Use]) -> None:
        """Take what has become durable."""
        for use in uses:
            self._by_id[use.intent_id] = use
            self.latest_signed_ms = max(self.latest_signed_ms, use.issued_at_ms)
        self._by_id = {use.intent_id: use for use in self if use.not_after_ms > self.latest_signed_ms}
