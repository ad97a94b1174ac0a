"""Logs as they come out: one line an event, own and foreign records alike, and what is taken out of them."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from fleet import logs
from fleet.redaction import MAX_TEXT_CHARS, MAX_TRACEBACK_CHARS
from fleet.secrets import MASK, Secret


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("sqlalchemy.engine", "sqlalchemy.pool"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    logs.configure(stream, fields={"component": "test"})
    return stream


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_fields(out: io.StringIO) -> None:
    logs.get_logger("fleet_server.streams").info("stream_opened", node_id="n1", epoch=4)
    (event,) = events(out)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "stream_opened",
        "node_id": "n1",
        "epoch": 4,
        "level": "info",
        "logger": "fleet_server.streams",
        "component": "test",
    }


def test_a_logger_made_before_configuration_follows_it() -> None:
    early = logs.get_logger("early")
    stream = io.StringIO()
    logs.configure(stream, level="warning")
    early.info("too_low")
    early.warning("late_enough")
    assert [event["event"] for event in events(stream)] == ["late_enough"]


def test_configuring_again_replaces_the_stream(out: io.StringIO) -> None:
    second = io.StringIO()
    logs.configure(second)
    logs.get_logger("x").info("moved")
    assert out.getvalue() == ""
    assert len(events(second)) == 1


def test_an_unknown_level_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        logs.configure(io.StringIO(), level="loud")


def test_records_of_other_libraries_come_out_the_same_way(out: io.StringIO) -> None:
    logging.getLogger("grpc._cython.cygrpc").warning("lost %s after %d s", "peer", 3, extra={"attempt": 2})
    warnings.warn("old call", RuntimeWarning, stacklevel=1)
    lost, warned = events(out)
    assert (lost["event"], lost["logger"], lost["attempt"]) == ("lost peer after 3 s", "grpc._cython.cygrpc", 2)
    assert lost["component"] == "test"
    assert (warned["logger"], "old call" in warned["event"]) == ("py.warnings", True)


@pytest.mark.parametrize("level", ["debug", "info"])
def test_the_database_library_never_logs_parameters(level: str) -> None:
    stream = io.StringIO()
    logs.configure(stream, level=level)
    logging.getLogger("sqlalchemy.engine.Engine").info("INSERT ... [('hunter2',)]")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"value": Secret("hunter2")},
        {"value": Secret(b"hunter2")},
        {"items": [1, ("x", Secret("hunter2"))]},
        {"token": "hunter2"},
        {"session_token": "hunter2"},
        {"api_key": "hunter2"},
        {"apiKey": "hunter2"},
        {"client_secret": "hunter2"},
        {"private_key": b"hunter2"},
        {"password": "hunter2"},
        {"Authorization": "hunter2"},
        {"metadata": {"authorization": "hunter2"}},
        {"deep": {"a": [{"b": {"password": "hunter2"}}]}},
        {"tokens": ["hunter2"]},
        {"blob": b"hunter2"},
        {"header": "authorization: Bearer hunter2"},
        {"text": "join with fjt1.hunter2.x now"},
        {"url": "postgresql+psycopg://fleet:hunter2@db/fleet"},
        {"pem": "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"},
        {"pem": "-----BEGIN EC PRIVATE KEY-----\nhunter2, and then cut"},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_secrets_are_taken_out_by_type_name_and_shape(fields: dict[str, Any], stream_type: type[io.StringIO]) -> None:
    stream = stream_type()
    logs.configure(stream)
    logs.get_logger("x").info("something_happened", **fields)
    assert "something_happened" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_what_only_describes_a_secret_stays_readable(out: io.StringIO) -> None:
    described = {
        "token_id": "t1",
        "session_token_sha256": "ab",
        "tokens_left": 2,
        "token_used": True,
        "secret_age_s": 4.5,
    }
    logs.get_logger("x").info("described", key_id="k", **described)
    (event,) = events(out)
    assert {name: event[name] for name in described} == described
    assert event["key_id"] == "k"


def test_secrets_in_exceptions_and_local_variables_stay_out(out: io.StringIO) -> None:
    def connect() -> None:
        key = "".join(["hunter", "2"])  # so that no source line of the traceback holds it
        raise RuntimeError(f"refused: Bearer {key}")

    for log in (logs.get_logger("own"), logging.getLogger("foreign")):
        try:
            connect()
        except RuntimeError:
            log.exception("connect_failed")
    assert "hunter2" not in out.getvalue()
    for event in events(out):
        assert "RuntimeError: refused: Bearer " + MASK in event["exception"]
        assert "in connect" in event["exception"]


def test_on_a_terminal_a_line_is_short() -> None:
    screen = Terminal()
    logs.configure(screen, fields={"component": "test", "node_id": "n1"})
    logs.get_logger("fleet_node.link").info("stream_welcomed", node_id="n1", epoch=4)
    logs.get_logger("fleet_node.link").info("about_another", node_id="n2")
    first, second = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[info +\] stream_welcomed +epoch=4", first)
    assert "node_id=n2" in second, "what is not the program's own stays"


def test_text_in_a_file_keeps_everything() -> None:
    stream = io.StringIO()
    logs.configure(stream, fields={"component": "test"}, pretty=True)
    logs.get_logger("fleet_node.link").info("stream_welcomed")
    assert re.match(r"\d{4}-\d\d-\d\dT.*Z \[info", stream.getvalue())
    assert "component=test" in stream.getvalue()


@pytest.mark.parametrize("pretty", [True, False])
def test_a_stranger_can_neither_forge_lines_nor_drive_the_terminal(pretty: bool) -> None:
    stream = Terminal()
    logs.configure(stream, pretty=pretty)
    logs.get_logger("x").info("node_said", name="\x1b[2J\rx\nforged level=info \u202e\x07")
    logging.getLogger("foreign").warning("said \x1b]0;title\x07\nforged")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    for control in ("\x1b[2J", "\x1b]0", "\x07", "\r", "\u202e"):
        assert control not in stream.getvalue()


def test_long_and_deep_values_are_cut(out: io.StringIO) -> None:
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"d": deep}
    try:
        raise ValueError("y" * 1_000_000)
    except ValueError:
        logs.get_logger("x").exception("cut", text="x" * 1_000_000, many=list(range(10_000)), deep=deep)
    (event,) = events(out)
    assert len(event["text"]) <= MAX_TEXT_CHARS + 10
    assert len(event["exception"]) <= MAX_TRACEBACK_CHARS + 10
    assert len(event["many"]) == 64
    assert "too deep" in json.dumps(event["deep"])


def test_a_terminal_gets_columns_and_anything_else_gets_json() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    logs.configure(terminal)
    logs.get_logger("x").info("hello_there", node_id="n1")
    logs.configure(pipe)
    logs.get_logger("x").info("hello_there", node_id="n1")
    assert "hello_there" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert json.loads(pipe.getvalue())["node_id"] == "n1"


def test_the_daemons_pay_for_no_terminal_library() -> None:
    program = "import sys, fleet.logs, fleet.metrics_listener; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
