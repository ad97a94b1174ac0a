"""How soon what an operator decides about a node is in force on its stream, on whichever replica that is."""

from __future__ import annotations

import statistics

from tests.load.context import Context
from tests.load.product.installation import Installation, replicas
from tests.load.product.postgres import durable_postgres
from tests.load.results import Figures

_WITNESS = "tests.load.product.witness:Witness"


async def at_the_holding_replica(ctx: Context) -> Figures:
    """Decided where the stream is: nothing has to be heard of from elsewhere."""
    return await _decided(ctx, "t2-same", elsewhere=False)


async def at_another_replica(ctx: Context) -> Figures:
    """Decided at one replica while the other holds the stream; half of the nodes are on each."""
    return await _decided(ctx, "t2-other", elsewhere=True)


async def _decided(ctx: Context, name: str, *, elsewhere: bool) -> Figures:
    nodes = ctx.scaled(24, 4)
    async with (
        durable_postgres() as postgres,
        replicas(ctx, name, nodes=nodes, database_url=postgres.url) as both,
        ctx.child(_WITNESS) as witness,
    ):
        saw = await witness.call(
            "watch",
            folders=both[0].node_folders,
            replicas=[_addresses(each) for each in both],
            ca=both[0].ca_pem.decode(),
            token=both[0].token,
            elsewhere=elsewhere,
        )
    figures: dict[str, float] = {"times": nodes}
    for what, seconds in saw.items():
        figures |= {f"{what}_p50_s": statistics.median(seconds), f"{what}_max_s": max(seconds)}
    return figures


def _addresses(server: Installation) -> dict[str, str]:
    return {"gateway": server.settings.gateway_listen, "admin": server.settings.admin_listen}
