"""Commands of live streams, in memory: what this replica issued for them and has not heard of since.

A busy writer would spend most of its time on asking the database for rows that it wrote itself a moment before. What is
in hand need not be asked for. It is a guess all the same, never the truth: whoever acts on it changes the rows by
compare-and-set ("still QUEUED", "still SENT, and no cancel asked for"). When a single row is not as it is remembered
(another replica, a cancel, the clock, somebody in the database), the transaction is undone, the node is forgotten here,
and the use case reads its rows as if nothing had ever been in hand.

It holds commands of nodes that have a stream on this replica, of the newest stream only; past a bound it takes nothing
more in. The event loop writes here; any thread may read what was sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fleet_server.commands import rules
from fleet_server.commands.runs import Run
from fleet_server.commands.store import StandingRow

MAX_HELD = 65_536
"""Commands, of all nodes: some 20 MiB."""
_NOTHING: Mapping[int, StandingRow] = {}


class NotAsRememberedError(Exception):
    """A row is not as it was in hand; what was done with it has to be undone."""


@dataclass(slots=True)
class _Hand:
    """Of one node, on one stream."""

    epoch: int
    queued: deque[Run] = field(default_factory=deque)
    sent: dict[int, StandingRow] = field(default_factory=dict)

    def size(self) -> int:
        return len(self.sent) + sum(len(run.rows) for run in self.queued)


class InHand:
    """See the module's text.

    Args:
        max_held: commands, of all nodes.
    """

    def __init__(self, max_held: int = MAX_HELD) -> None:
        self._max_held = max_held
        self._held = 0
        self._hands: dict[str, _Hand] = {}

    def put_queued(self, run: Run) -> None:
        """These were issued, and wait to be sent."""
        hand = self._hand_for(run.node_id, run.epoch, len(run.rows))
        if hand is not None:
            hand.queued.append(run)

    def put_sent(self, run: Run, key_id: bytes | None, sent_at_ms: int) -> None:
        """These were signed, and their node's word on them is awaited."""
        hand = self._hand_for(run.node_id, run.epoch, len(run.rows))
        if hand is not None:
            for row in run.sent(key_id, sent_at_ms):
                hand.sent[row.seq] = row

    def next_queued(self, node_id: str, epoch: int, after_seq: int, limit: int, now_ms: int) -> list[Run]:
        """What a stream sends next, without a gap from `after_seq` on; empty when that is not known here."""
        hand = self._hands.get(node_id)
        if hand is None or hand.epoch != epoch:
            return []
        while hand.queued and hand.queued[0].rows[-1].seq <= after_seq:
            self._held -= len(hand.queued.popleft().rows)
        found: list[Run] = []
        for run in hand.queued:
            if run.rows[0].seq > after_seq + 1 or limit <= 0 or rules.expired(run.rows[0].not_after_ms, now_ms):
                break
            found.append(run.cut(after_seq, limit))
            after_seq = found[-1].rows[-1].seq
            limit -= len(found[-1].rows)
        return found

    def sent(self, node_id: str) -> Mapping[int, StandingRow]:
        """By seq, what was sent to a node and has no answer yet; any thread."""
        hand = self._hands.get(node_id)
        return _NOTHING if hand is None else hand.sent

    def answered(self, node_id: str, seq: int) -> None:
        """A command that was sent stands elsewhere now."""
        hand = self._hands.get(node_id)
        if hand is not None and hand.sent.pop(seq, None) is not None:
            self._held -= 1

    def forget(self, node_ids: Iterable[str]) -> None:
        """Nothing is known of these nodes any more."""
        for node_id in node_ids:
            hand = self._hands.pop(node_id, None)
            if hand is not None:
                self._held -= hand.size()

    def retain(self, has_stream: Callable[[str], object]) -> None:
        """Forget nodes that have no stream here any more."""
        self.forget([node_id for node_id in self._hands if not has_stream(node_id)])

    def _hand_for(self, node_id: str, epoch: int, count: int) -> _Hand | None:
        """The hand that takes `count` commands more in; None when there is no room."""
        hand = self._hands.get(node_id)
        if hand is not None and hand.epoch < epoch:
            self.forget([node_id])
            hand = None
        if self._held + count > self._max_held or (hand is not None and hand.epoch != epoch):
            return None
        if hand is None:
            hand = self._hands[node_id] = _Hand(epoch)
        self._held += count
        return hand


def total(runs: Sequence[Run]) -> int:
    """Commands in runs."""
    return sum(len(run.rows) for run in runs)
