"""What waits for what among the frames of a stream."""

import asyncio
from typing import Any, cast

import pytest

from fleet.errors import Refusal
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet_node.link.credentials import Credentials
from fleet_node.link.inbox import Inbox
from fleet_node.link.ports import CommandStream, TrustPort


class Rooms:
    """Takes frames, each slowly, and notes them when it is done."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.failed: list[Refusal] = []

    async def _note(self, what: str, turns: int = 1) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        self.taken.append(what)

    async def command_frame(self, frame: command_pb2.CommandFrame) -> None:
        await self._note(frame.signed.statement.decode())

    async def floor_frame(self, signed: trust_pb2.Signed) -> None:
        await self._note("floor", turns=20)
        if signed.statement == b"fault":
            raise RuntimeError("a fault")

    async def offer(self, bundles: object) -> gateway_pb2.BundleApplied:
        await self._note("bundle", turns=20)
        return gateway_pb2.BundleApplied()


def inbox_of(rooms: Rooms) -> Inbox:
    return Inbox(
        cast(CommandStream, rooms),
        cast(TrustPort, rooms),
        cast(Credentials, None),
        answer=lambda _: None,
        renew=lambda: None,
        failed=rooms.failed.append,
    )


def put(inbox: Inbox, **body: Any) -> None:
    inbox.put_nowait(gateway_pb2.ServerControl(**body), 10)


def statement(name: str) -> command_pb2.CommandFrame:
    return command_pb2.CommandFrame(signed=trust_pb2.Signed(statement=name.encode()))


@pytest.mark.parametrize("first", ["bundle", "floor"])
async def test_a_statement_is_judged_after_what_was_sent_before_it(first: str) -> None:
    rooms = Rooms()
    inbox = inbox_of(rooms)
    put(inbox, commands=statement("before"))
    if first == "bundle":
        put(inbox, trust_bundle=gateway_pb2.TrustBundles())
    else:
        put(inbox, floor=trust_pb2.Signed())
    put(inbox, commands=statement("after"))
    put(inbox, commands=statement("last"))
    workers = inbox.start()
    while len(rooms.taken) < 4:
        await asyncio.sleep(0)
    inbox.close()
    await asyncio.wait(workers)
    assert rooms.taken.index("after") > rooms.taken.index(first)
    assert rooms.taken.index("last") > rooms.taken.index("after")


async def test_a_floor_that_cannot_be_taken_ends_the_stream_and_no_worker_outlives_it() -> None:
    rooms = Rooms()
    inbox = inbox_of(rooms)
    put(inbox, floor=trust_pb2.Signed(statement=b"fault"))
    put(inbox, commands=statement("after"))
    workers = inbox.start()
    while not rooms.failed:
        await asyncio.sleep(0)
    inbox.close()
    await asyncio.wait_for(asyncio.gather(*workers), 5)
    assert rooms.taken == ["floor"]


async def test_what_waits_behind_an_order_that_failed_waits_for_nothing() -> None:
    rooms = Rooms()
    inbox = inbox_of(rooms)
    put(inbox, floor=trust_pb2.Signed(statement=b"fault"))
    put(inbox, trust_bundle=gateway_pb2.TrustBundles())
    put(inbox, commands=statement("after"))
    workers = inbox.start()
    await asyncio.wait_for(asyncio.gather(*workers), 5)
    assert rooms.taken == ["floor"]
