"""The daemon's side of the control socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fleet.logs import get_logger
from fleet_node.status.protocol import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, TIMEOUT_S, socket_address

log = get_logger(__name__)

_MAX_CONNECTIONS = 8
Answer = Callable[[], Awaitable[Mapping[str, Any]]]


class ControlServer:
    """Answers questions about the running node to its own user.

    Args:
        path: the socket; one that a killed daemon left behind is replaced, since the caller holds the folder's lock.
        answers: what may be asked.
    """

    def __init__(self, path: Path, answers: Mapping[str, Answer]) -> None:
        self._path = path
        self._answers = answers
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket cannot be made.
        """
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(listening.fileno(), 0o600)  # before it has a name: there is no moment at which others may connect
            with socket_address(self._path) as address:
                listening.bind(address)
            self._path.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._accept, sock=listening, limit=MAX_REQUEST_BYTES)
        except BaseException:
            listening.close()
            raise

    async def close(self) -> None:
        """Stop listening and remove the socket. A second call does nothing."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for connection in list(self._connections):
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        self._path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS or not _is_own_user(writer):
            writer.transport.abort()
            return
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                line = await reader.readline()
                writer.write(await self._reply(line))
                await writer.drain()
                writer.write_eof()
                await reader.read(1)  # until the asker has it all and closes
        except (OSError, TimeoutError, ValueError):
            pass  # it went away, was too slow, or sent more than a line may hold
        finally:
            writer.transport.abort()

    async def _reply(self, line: bytes) -> bytes:
        try:
            question = json.loads(line)["ask"]
            answer = self._answers[question]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _line({"ok": False, "error": f"ask one of {', '.join(sorted(self._answers))}"})
        try:
            reply = _line({"ok": True, "answer": await answer()})
        except Exception:
            log.exception("control_answer_failed")
            return _line({"ok": False, "error": "the answer could not be made: see the node's log"})
        if len(reply) > MAX_ANSWER_BYTES:
            return _line({"ok": False, "error": "the answer is too long"})
        return reply


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _is_own_user(writer: asyncio.StreamWriter) -> bool:
    """Whether the asker is this process's user or root: the folder's mode says so already; this holds when someone
    opens it."""
    own: socket.socket = writer.get_extra_info("socket")
    credentials = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (0, os.geteuid())
