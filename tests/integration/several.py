"""Several replicas of one installation, on one PostgreSQL."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from tests.integration.installation import Installation
from tests.integration.on_postgres import copied_installation

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
    async with copied_installation(postgres) as (template, name), contextlib.AsyncExitStack() as running:
        yield [
            await running.enter_async_context(
                Installation(
                    folder / each, template, database_url=SecretStr(postgres.url(name)), replica_id=each, **settings
                )
            )
            for each in names
        ]
