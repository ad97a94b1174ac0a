"""When the simulated nodes have their streams."""

import asyncio
from collections.abc import Sequence

from fleet_node.link.link import Link
from fleet_node.link.link_status import LinkState

_POLL_S = 0.02


async def wait_live(links: Sequence[Link]) -> None:
    """Return once every link has its stream; whoever asked bounds the wait."""
    while any(link.status.state is not LinkState.LIVE for link in links):
        await asyncio.sleep(_POLL_S)
