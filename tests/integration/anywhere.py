"""Two replicas, and calls of operators made at the one that holds no stream of the nodes that they are about.

Each case makes its calls at `there`, and looks at once, without waiting, whether the replica that holds the streams
says the same.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from fleet.envelope import Signer
from fleet.v1 import admin_pb2 as pb
from fleet.v1 import command_pb2
from tests.integration.installation import Installation, RunningNode
from tests.integration.operator import Operator

DAY_MS = 86_400_000
ACTION = "simulated.work"
LIVE = {"last_seen_ms", "rtt_us", "clock_offset_ms", "last_accepted_seq", "open_commands"}
"""What the replica that holds a stream hears first; the others read it with its next flush, two seconds later."""
LIVE |= {"holders", "holding", "away", "lacking", "complete"}  # what nodes take up between two questions


def only(name: str) -> pb.Selector:
    """One node."""
    return pb.Selector(patterns=[name])


@dataclass
class Matrix:
    """Two replicas: the nodes stream to `here`, operators call `there`."""

    here: Installation
    there: Installation
    called: set[str] = field(default_factory=set)
    nodes: dict[str, RunningNode] = field(default_factory=dict)
    people: dict[str, Signer] = field(default_factory=dict)

    async def call(self, method: str, request: Message, by: Operator | None = None) -> Any:
        """A unary call at `there`."""
        self.called.add(method)
        return await (by or self.there.owner).ask(method, request)

    async def follow(self, method: str, request: Message) -> AsyncIterator[Any]:
        """A streaming call at `there`."""
        self.called.add(method)
        async for answer in self.there.owner.follow(method, request):
            yield answer

    async def same(self, method: str, request: Message) -> Any:
        """What `there` says, and `here` says as well, unless it changed in between."""
        said = await self.call(method, request)
        for _ in range(20):
            elsewhere, before = bare(await self.here.owner.ask(method, request)), bare(said)
            if elsewhere == before:
                return said
            said = await self.call(method, request)
            assert elsewhere == bare(said) or before != bare(said), method
        raise AssertionError(f"{method} never stood still")

    async def node(self, name: str) -> pb.NodeView:
        """As `there` sees it."""
        return (await self.same("GetNode", pb.GetNodeRequest(node=name))).node

    async def apply(self, name: str, token: str) -> tuple[RunningNode, Any]:
        """A machine that asks `here` to join, and what it was told."""
        settings: dict[str, Any] = {"endpoints": (self.here.gateway,), "simulated": {"series": 2}}
        node = RunningNode(self.here.folder / name, name, self.here.clock, **settings)
        return node, await node.enrollment().apply(token, node.applicant)


def bare(message: Message) -> str:
    """Without what changes from one moment to the next."""
    kept = type(message)()
    kept.CopyFrom(message)
    _strip(kept)
    return str(kept)


def _strip(message: Message) -> None:
    if isinstance(message, pb.ReplicaView):
        message.CopyFrom(pb.ReplicaView(replica_id=message.replica_id, state=message.state, version=message.version))
    for descriptor, value in message.ListFields():
        name, submessage = descriptor.name, descriptor.message_type
        if name in LIVE or (name == "nodes" and submessage is None):
            message.ClearField(name)
        elif submessage is not None and not submessage.GetOptions().map_entry:
            for each in value if descriptor.is_repeated else [value]:
                _strip(each)


Case = Callable[[Matrix], Awaitable[None]]


async def runs(m: Matrix) -> None:
    """A command issued at `there` runs on a node that streams to `here`."""
    (view,) = await m.there.owner.run("n-1")
    assert view.state == command_pb2.COMMAND_STATE_SUCCEEDED
