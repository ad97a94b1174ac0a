"""The daemon's side of the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.logs import get_logger
from fleet_node.status.protocol import (
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    TAKEN_WITHIN_S,
    TIMEOUT_S,
    WORKING_EVERY_S,
    socket_address,
)

log = get_logger(__name__)

_MAX_CONNECTIONS = 8
Answer = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True)
class Progress:
    """How far a long answer is. Whoever makes it writes here, on any thread."""

    done: int = 0
    of: int = 0


LongAnswer = Callable[[Progress, contextlib.ExitStack], Awaitable[Mapping[str, Any]]]
"""Makes an answer that may take its time. It is cancelled when the asker goes away; what it registers on the stack is
done in any case, once the asker has closed the connection."""


class ControlServer:
    """Answers questions about the running node to its own user.

    Args:
        path: the socket; one that a killed daemon left behind is replaced, since the caller holds the folder's lock.
        answers: what may be asked.
        long_answers: what may be asked and takes longer than `TIMEOUT_S`, or is to be cleared away after it.
    """

    def __init__(
        self, path: Path, answers: Mapping[str, Answer], long_answers: Mapping[str, LongAnswer] | None = None
    ) -> None:
        self._path = path
        self._answers = answers
        self._long_answers = long_answers or {}
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
            async with asyncio.timeout(TIMEOUT_S) as limit:
                question = _question(await reader.readline())
                if question in self._long_answers:
                    limit.reschedule(None)
                    await self._serve_long(self._long_answers[question], reader, writer)
                    return
                writer.write(await self._reply(question))
                await writer.drain()
                writer.write_eof()
                await reader.read(1)  # until the asker has it all and closes
        except (OSError, TimeoutError, ValueError):
            pass  # it went away, was too slow, or sent more than a line may hold
        finally:
            writer.transport.abort()

    async def _serve_long(self, make: LongAnswer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        progress = Progress()
        with contextlib.ExitStack() as afterwards:
            gone = asyncio.ensure_future(reader.read(1))
            making = asyncio.ensure_future(_made(make(progress, afterwards)))
            try:
                while True:
                    await asyncio.wait({making, gone}, timeout=WORKING_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                    if gone.done():
                        return
                    if making.done():
                        break
                    await _send(writer, _line({"working": {"done": progress.done, "of": progress.of}}))
                await _send(writer, making.result())
                await asyncio.wait({gone}, timeout=TAKEN_WITHIN_S)
            finally:
                making.cancel()
                gone.cancel()
                await asyncio.gather(making, gone, return_exceptions=True)

    async def _reply(self, question: str) -> bytes:
        answer = self._answers.get(question)
        if answer is None:
            known = sorted([*self._answers, *self._long_answers])
            return _line({"ok": False, "error": f"ask one of {', '.join(known)}"})
        return await _made(answer())


def _question(line: bytes) -> str:
    """Empty when it is none."""
    try:
        return str(json.loads(line)["ask"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


async def _made(answer: Awaitable[Mapping[str, Any]]) -> bytes:
    try:
        reply = _line({"ok": True, "answer": await answer})
    except Exception:
        log.exception("control_answer_failed")
        return _line({"ok": False, "error": "the answer could not be made: see the node's log"})
    if len(reply) > MAX_ANSWER_BYTES:
        return _line({"ok": False, "error": "the answer is too long"})
    return reply


async def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        writer.write(line)
        await writer.drain()


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _is_own_user(writer: asyncio.StreamWriter) -> bool:
    """Whether the asker is this process's user or root: the folder's mode says so already; this holds when someone
    opens it."""
    own: socket.socket = writer.get_extra_info("socket")
    credentials = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (0, os.geteuid())
