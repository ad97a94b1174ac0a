"""How many commands are open, by node, and since which seq: in memory, for a refusal at the cap and for people.

What is issued and what ends here is counted as it is committed. What other replicas issue, and what they hear the end
of, comes with the poll, which reads the counts of all nodes (`adopt`). A node whose commands change here while they are
read keeps its own count: nobody can tell which of the changes the read has seen. So the count of a node that is busy
all the time may be off until the next recount, and a refusal that it would be the reason of counts again.

The lowest seq that was open when all nodes were read is never too high, however old it is: what is open ends, and what
is issued has a higher seq. Who looks for open commands of a node begins there, and not with a history of years.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet_server.commands.open_store import OpenOfNode


class OpenCounts:
    """Belongs to the event loop; any thread may read a count."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._lowest: dict[str, int] = {}
        self._moved: set[str] | None = None
        self.total = 0
        """Open commands of all nodes."""

    def of(self, node_id: str) -> int:
        """Open commands of a node."""
        return self._open.get(node_id, 0)

    def since(self, node_id: str) -> int:
        """A seq before which nothing of a node is open; 0 when none is known."""
        return self._lowest.get(node_id, 0)

    def set_all(self, nodes: Sequence[OpenOfNode]) -> None:
        """Counted in the writer's order: exact."""
        self._open = {node.node_id: node.open for node in nodes}
        self._lowest = {node.node_id: node.lowest for node in nodes}
        self.total = sum(self._open.values())

    def issued(self, node_id: str, count: int) -> None:
        """So many more."""
        self._open[node_id] = self._open.get(node_id, 0) + count
        self.total += count
        if self._moved is not None:
            self._moved.add(node_id)

    def ended(self, node_id: str, count: int) -> None:
        """So many fewer."""
        known = self._open.get(node_id, 0)
        gone = min(count, known)  # a row that somebody inserted was never counted, nor one that another replica issued
        self.total -= gone
        if known > gone:
            self._open[node_id] = known - gone
        else:
            self._open.pop(node_id, None)
        if self._moved is not None:
            self._moved.add(node_id)

    def reading(self) -> None:
        """The counts are about to be read: note whose change meanwhile."""
        self._moved = set()

    def adopt(self, nodes: Sequence[OpenOfNode]) -> None:
        """Take what was read, of all nodes that did not change here since `reading`."""
        moved, self._moved = self._moved or set(), None
        counts = {node.node_id: node.open for node in nodes}
        self._lowest = {node.node_id: node.lowest for node in nodes}
        if counts == self._open:
            return
        for node_id in (self._open.keys() | counts.keys()) - moved:
            now = counts.get(node_id, 0)
            self.total += now - self._open.get(node_id, 0)
            if now:
                self._open[node_id] = now
            else:
                self._open.pop(node_id, None)
