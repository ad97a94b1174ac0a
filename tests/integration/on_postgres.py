"""New installations on PostgreSQL: one is made on each server, the others are copies of it and of its database."""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fleet.clock import SystemClock
from fleet_server import bootstrap
from tests.integration.installation import Template, free_ports, server_settings

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


def copy_installation(postgres: "PostgresServer") -> tuple[Template, str]:
    """An initialised server that never ran, and the name of a database of its own. Runs an event loop if need be."""
    template, name = _made(postgres)
    return template, postgres.create_database(name)


@asynccontextmanager
async def copied_installation(postgres: "PostgresServer") -> AsyncIterator[tuple[Template, str]]:
    """The same; the database goes with the context."""
    template, name = await asyncio.to_thread(copy_installation, postgres)
    yield template, name
    postgres.drop_database(name)


@functools.cache
def _made(postgres: "PostgresServer") -> tuple[Template, str]:
    data, name = postgres.make_folder() / "server", postgres.create_database()
    settings = server_settings(data, *free_ports(2), database_url=postgres.url(name))
    made = asyncio.run(bootstrap.init(settings, owner="owner", clock=SystemClock()))
    assert made.owner_token is not None
    return Template(data, made.owner_token.reveal()), name
