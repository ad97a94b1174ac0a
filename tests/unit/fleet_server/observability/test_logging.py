"""What the server adds to its logs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from fleet.logs import get_logger
from fleet_server.observability import logging as server_logging


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("replica_id", [None, "r1"])
def test_events_name_the_component_and_the_replica(replica_id: str | None) -> None:
    stream = io.StringIO()
    server_logging.configure("info", replica_id=replica_id, stream=stream)
    get_logger("fleet_server.app").info("started")
    event = json.loads(stream.getvalue())
    assert (event["component"], event.get("replica_id")) == ("fleet-server", replica_id)


def test_migrations_speak_through_it() -> None:
    stream = io.StringIO()
    server_logging.configure("info", stream=stream)
    alembic = logging.getLogger("alembic.runtime.migration")
    alembic.info("Context impl %s.", "SQLiteImpl")  # what it says at each start, and tells nobody anything
    alembic.info("Running upgrade %s -> %s", "a", "b")
    assert json.loads(stream.getvalue())["event"] == "Running upgrade a -> b"
