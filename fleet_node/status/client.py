"""Asks the running daemon over its control socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet_node.status.protocol import MAX_ANSWER_BYTES, TIMEOUT_S, socket_address

Working = Callable[[int, int], None]


def _unheeded(done: int, of: int) -> None:
    pass


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
    with asking(path, question) as answer:
        return answer


@contextmanager
def asking(path: Path, question: str, working: Working = _unheeded) -> Iterator[dict[str, Any]]:
    """A question whose answer names what the daemon keeps for as long as the context lasts.

    Args:
        path: the control socket.
        question: such as "copy_journal".
        working: told about once a second how much is done, and of how much, until the answer is there.

    Raises:
        DaemonAwayError: nobody listens.
        DaemonSilentError: somebody does, and does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        yield _answer(connection, path, question, working)


def _answer(connection: socket.socket, path: Path, question: str, working: Working) -> dict[str, Any]:
    try:
        connection.settimeout(TIMEOUT_S)
        with socket_address(path) as address:
            connection.connect(address)
        connection.sendall(json.dumps({"ask": question}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            while True:
                line = lines.readline(MAX_ANSWER_BYTES + 1)
                progress = _progress(line)
                if progress is None:
                    return _parse(line)
                working(*progress)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        raise DaemonAwayError("no daemon runs on this state folder") from error
    except OSError as error:
        raise DaemonSilentError(
            f"the daemon does not answer on {path} ({error.strerror or 'no answer in time'}): look at its log, and "
            "restart it if it hangs"
        ) from error


def _progress(line: bytes) -> tuple[int, int] | None:
    try:
        said = json.loads(line)["working"]
        return int(said["done"]), int(said["of"])
    except (ValueError, KeyError, TypeError):
        return None


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
