"""Several replicas of one installation, on one PostgreSQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet_server import bootstrap
from tests.integration.installation import Installation, Template, free_ports, server_settings

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


@asynccontextmanager
async def several(
    folder: Path, postgres: "PostgresServer", names: Sequence[str], **settings: Any
) -> AsyncIterator[list[Installation]]:
    """Servers of one installation, each with listeners of its own; started in the order of `names`.

    Args:
        settings: changes to the settings of each.
    """
    name = postgres.create_database()
    url = SecretStr(postgres.url(name))
    data = folder / "template"
    initial = server_settings(data, *free_ports(2), database_url=url)
    made = await asyncio.to_thread(lambda: asyncio.run(bootstrap.init(initial, owner="owner", clock=SystemClock())))
    assert made.owner_token is not None
    template = Template(data, made.owner_token.reveal())
    async with contextlib.AsyncExitStack() as running:
        yield [
            await running.enter_async_context(
                Installation(folder / name, template, database_url=url, replica_id=name, **settings)
            )
            for name in names
        ]
    postgres.drop_database(name)
