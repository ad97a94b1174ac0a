"""Asks the running daemon over its control socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from fleet_node.status.protocol import MAX_ANSWER_BYTES, TIMEOUT_S, socket_address


class DaemonAwayError(Exception):
    """No daemon runs on this state folder."""


class DaemonSilentError(Exception):
    """There is a socket, and no good answer from it; says what to do."""


def ask(path: Path, question: str) -> dict[str, Any]:
    """One question to the daemon.

    Args:
        path: the control socket.
        question: such as "status".

    Raises:
        DaemonAwayError: nobody listens.
        DaemonSilentError: somebody does, and does not answer.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            with socket_address(path) as address:
                connection.connect(address)
            connection.sendall(json.dumps({"ask": question}).encode() + b"\n")
            reply = _read_all(connection)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        raise DaemonAwayError("no daemon runs on this state folder") from error
    except OSError as error:
        raise DaemonSilentError(
            f"the daemon does not answer on {path} ({error.strerror or 'no answer in time'}): look at its log, and "
            "restart it if it hangs"
        ) from error
    return _parse(reply)


def _read_all(connection: socket.socket) -> bytes:
    received = bytearray()
    while chunk := connection.recv(64 * 1024):
        received += chunk
        if len(received) > MAX_ANSWER_BYTES:
            break
    return bytes(received)


def _parse(reply: bytes) -> dict[str, Any]:
    try:
        said = json.loads(reply)
        if said["ok"]:
            answer = said["answer"]
            if isinstance(answer, dict):
                return answer
        problem = str(said.get("error", "no answer"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DaemonSilentError("the daemon's answer cannot be read: is it of another version?") from error
    raise DaemonSilentError(f"the daemon answered: {problem}")
