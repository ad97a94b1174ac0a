"""Commands that go on while something else happens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.installation import Installation
from tests.integration.waiting import eventually

_PAUSE_S = 0.005  # paces what is issued, so that other things get their turn on the one loop; nothing waits for it


@asynccontextmanager
async def traffic(installation: Installation, nodes: str = "*") -> AsyncIterator[list[str]]:
    """Commands to nodes, one order after the other; the ids of the orders, all final at the end."""
    orders: list[str] = []
    done = asyncio.Event()

    async def issue() -> None:
        while not done.is_set():
            orders.append((await installation.owner.issue(nodes, count=8)).issue_id)
            await asyncio.sleep(_PAUSE_S)

    issuing = asyncio.create_task(issue())
    try:
        yield orders
    finally:
        done.set()
        await issuing


async def more(orders: list[str], count: int) -> None:
    """Return once so many orders went out after now."""
    wanted = len(orders) + count
    await eventually(lambda: len(orders) >= wanted, f"{count} more orders")
