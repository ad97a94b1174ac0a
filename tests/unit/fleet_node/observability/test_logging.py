"""What the node adds to its logs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from fleet.logs import get_logger
from fleet_node.observability import logging as node_logging


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("node_id", [None, "n1"])
def test_events_name_the_component_and_the_node(node_id: str | None) -> None:
    stream = io.StringIO()
    node_logging.configure("info", node_id=node_id, stream=stream)
    get_logger("fleet_node.link").info("stream_up")
    event = json.loads(stream.getvalue())
    assert (event["component"], event.get("node_id")) == ("fleet-node", node_id)
