"""The line of those who come back: who is let in now, and when the others are to ask again. Pure: time is an argument.

Mental model
    A token bucket never lets in more than rate * time + burst. Whoever it has no turn for is promised a slot of its
    own, one each 1/rate seconds, and owns it: the turn that comes up with that slot is kept for it, so it is sent away
    once.
    Half of the bucket is for those who were promised alone, who come in little crowds: each adds some chance to its
    delay. What is left over is anybody's: turns of those who did not come (another replica took them), and what a rate
    that grew brings.
    When the rate falls, or too many are under way, promises cannot be kept. Who comes for one then waits again, before
    everybody whose slot is still to come.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from fleet_server.sessions.rules import WHOLE, TokenBucket

JITTER = 0.1
"""Of its delay, that a node adds at random (docs/protocol.md, "Service Gateway")."""
LATE_S = 2.0
"""A slot is kept for so long after its owner may come: what is asked lies on a way, and in a busy replica's queue."""
FULL_WAIT_S = 0.25
"""Until what is under way may have become less."""
_LEAST_S = 0.001
_ROUNDING_S = 1e-8


@dataclass(slots=True, eq=False)
class _Slot:
    """A turn that was promised: from when on, until when it is kept, and whether it is the owner's second wait."""

    owner: bytes
    where: str
    at_s: float
    until_s: float
    again: bool
    due: bool = False
    over: bool = False


class ReturnLine:
    """Lets callers in, and promises turns to those who have to wait.

    Args:
        rate_per_s: turns a second; `pace` changes it.
        burst: turns that may come at once, half of them those of promised slots alone.
        now_s: monotonic seconds.
        max_delay_s: nobody is sent away for longer. Who would be gets no slot, and a delay in its second half.
        max_slots: that are kept in mind. Beyond them nobody is promised any.
    """

    def __init__(
        self, rate_per_s: float, burst: float, now_s: float, *, max_delay_s: float = 60.0, max_slots: int = 50_000
    ) -> None:
        self._bucket = TokenBucket(rate_per_s, burst, now_s)
        self._max_delay_s = max_delay_s
        self._max_slots = max_slots
        self._slots: dict[bytes, dict[str, _Slot]] = {}
        self._to_come: list[tuple[float, int, _Slot]] = []  # by when they are due
        self._expected: list[tuple[float, int, _Slot]] = []  # due ones, by until when they are kept
        self._agains: deque[_Slot] = deque()  # those to come who wait again, in order
        self._order = itertools.count()
        self._waiting = 0
        self._due = 0
        self._due_again = 0
        self._last_s = self._front_s = now_s - 1.0 / rate_per_s

    def __len__(self) -> int:
        """Slots that are kept in mind, those that are over by now included."""
        return len(self._to_come) + len(self._expected)

    def pace(self, rate_per_s: float, burst: float, now_s: float) -> None:
        """From now on so many turns come up a second, and so many may come at once."""
        self._bucket.pace(rate_per_s, burst, now_s)

    def places(self, owner: bytes, now_s: float) -> Collection[str]:
        """Where an owner has a slot."""
        self._settle(now_s)
        return self._slots.get(owner, {}).keys()

    def arrive(self, owner: bytes, where: str, now_s: float, *, chance: float, full: bool = False) -> float:
        """0 when the caller is let in; else seconds after which it is to come again.

        Args:
            owner: whose slot it is, with `where`: what proves that it is the same caller.
            chance: random number in [0, 1), for those who get no slot.
            full: too many are under way: nobody is let in, and everybody keeps its place.
        """
        self._settle(now_s)
        slot = self._slots.get(owner, {}).get(where)
        promised = slot is not None and slot.due
        if not full and self._bucket.tokens(now_s) - self._owed_before(slot, now_s) >= WHOLE:
            self._bucket.take(now_s)
            if slot is not None:
                self._drop(slot)
            return 0.0
        if slot is None:
            return self._promise(owner, where, now_s, chance, full=full)
        if promised:
            return self._promise_again(slot, now_s, full=full)
        return max(_LEAST_S, slot.at_s - now_s)

    def delay_s(self, now_s: float, chance: float) -> float:
        """Seconds after which somebody is to come who is nobody yet: it gets no slot, and makes no line longer."""
        return min(self._max_delay_s, max(1.0, self._last_s - now_s)) * (0.5 + 0.5 * chance)

    def _owed_before(self, slot: _Slot | None, now_s: float) -> float:
        """Turns of those there are now that are not this caller's."""
        if slot is not None and slot.due:
            return 0.0 if slot.again else self._due_again + self._owed_to(self._next_again(), now_s)
        owed = self._due + self._kept + self._owed_to(self._next_slot(), now_s)
        # Of a bucket that is about to run over what comes in would be lost, whoever is still expected.
        over = self._bucket.burst - 2.0
        return min(owed, over) if over > self._kept else owed

    def _owed_to(self, slot: _Slot | None, now_s: float) -> float:
        """The part of a slot's turn that has to be there now for the turn to be whole when the slot begins."""
        return 0.0 if slot is None else max(0.0, 1.0 - (slot.at_s - now_s) * self._bucket.rate_per_s)

    def _next_slot(self) -> _Slot | None:
        while self._to_come and self._to_come[0][2].over:
            heapq.heappop(self._to_come)
        return self._to_come[0][2] if self._to_come else None

    def _next_again(self) -> _Slot | None:
        while self._agains and (self._agains[0].over or self._agains[0].due):
            self._agains.popleft()
        return self._agains[0] if self._agains else None

    @property
    def _kept(self) -> float:
        return max(0.0, min(self._bucket.burst / 2, self._bucket.burst - 1.0))

    def _promise(self, owner: bytes, where: str, now_s: float, chance: float, *, full: bool) -> float:
        missing = self._waiting + 1.0 + self._kept - self._bucket.tokens(now_s)
        at_s = max(self._last_s + self._step_s, self._served_s(missing, now_s, full=full))
        if at_s - now_s > self._max_delay_s or len(self) >= self._max_slots:
            return self._max_delay_s * (0.5 + 0.5 * chance)
        self._last_s = at_s
        return self._keep(owner, where, at_s, now_s, again=False)

    def _promise_again(self, slot: _Slot, now_s: float, *, full: bool) -> float:
        self._drop(slot)
        missing = self._due_again + 1.0 - self._bucket.tokens(now_s)
        at_s = max(self._front_s + self._step_s, self._served_s(missing, now_s, full=full))
        at_s = self._front_s = min(at_s, now_s + self._max_delay_s)
        return self._keep(slot.owner, slot.where, at_s, now_s, again=True)

    @property
    def _step_s(self) -> float:
        return 1.0 / self._bucket.rate_per_s

    def _served_s(self, missing: float, now_s: float, *, full: bool) -> float:
        """When so many more turns will have come up."""
        return now_s + max(_LEAST_S, missing * self._step_s) + (FULL_WAIT_S if full else 0.0)

    def _keep(self, owner: bytes, where: str, at_s: float, now_s: float, *, again: bool) -> float:
        delay_s = at_s - now_s
        slot = _Slot(owner, where, at_s, at_s + JITTER * delay_s + LATE_S, again)
        self._slots.setdefault(owner, {})[where] = slot
        if again:
            self._next_again()
            self._agains.append(slot)
        self._waiting += 1
        heapq.heappush(self._to_come, (slot.at_s, next(self._order), slot))
        return delay_s

    def _settle(self, now_s: float) -> None:
        """Slots become due, and those end whose owner did not come."""
        while self._to_come and self._to_come[0][0] <= now_s + _ROUNDING_S:
            slot = heapq.heappop(self._to_come)[2]
            if not slot.over:
                slot.due = True
                self._count_due(slot, 1)
                heapq.heappush(self._expected, (slot.until_s, next(self._order), slot))
        while self._expected and self._expected[0][0] <= now_s:
            slot = heapq.heappop(self._expected)[2]
            if not slot.over:
                self._drop(slot)

    def _drop(self, slot: _Slot) -> None:
        slot.over = True
        self._waiting -= 1
        if slot.due:
            self._count_due(slot, -1)
        held = self._slots[slot.owner]
        del held[slot.where]
        if not held:
            del self._slots[slot.owner]

    def _count_due(self, slot: _Slot, count: int) -> None:
        self._due += count
        self._due_again += count * slot.again
