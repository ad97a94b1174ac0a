"""The control socket: private, capped, and honest when nobody answers."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fleet_node.status.client import DaemonAwayError, DaemonSilentError, ask, asking
from fleet_node.status.protocol import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES
from fleet_node.status.server import ControlServer, Progress


async def well() -> Mapping[str, Any]:
    return {"well": True}


async def ill() -> Mapping[str, Any]:
    raise RuntimeError("secret text")


async def long() -> Mapping[str, Any]:
    return {"x": "x" * MAX_ANSWER_BYTES}


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    server = ControlServer(tmp_path / "control.sock", {"status": well, "ill": ill, "long": long})
    await server.start()
    yield tmp_path / "control.sock"
    await server.close()


class Copying:
    """A long answer: names a file, which is made once `finish` is set."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.begun, self.finish, self.cleared = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.cancelled = False

    async def __call__(self, progress: Progress, afterwards: ExitStack) -> Mapping[str, Any]:
        afterwards.callback(self._clear)
        self.file.write_text("half")
        progress.done, progress.of = 1, 2
        self.begun.set()
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return {"path": str(self.file)}

    def _clear(self) -> None:
        self.file.unlink()
        self.cleared.set()


@pytest.fixture
async def copying(tmp_path: Path) -> AsyncIterator[Copying]:
    copying = Copying(tmp_path / "copy")
    server = ControlServer(tmp_path / "copying.sock", {"ill": ill}, {"copy": copying})
    await server.start()
    yield copying
    await server.close()


async def raw(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_a_question_is_answered(path: Path) -> None:
    assert await asyncio.to_thread(ask, path, "status") == {"well": True}


async def test_the_socket_is_its_owners_alone(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"garbage\n",
        b"[]\n",
        b'"status"\n',
        b'{"ask": 1}\n',
        b'{"ask": ["status"]}\n',
        b'{"ask": "x"}\n',
        b"\xff\n",
    ],
)
async def test_a_wrong_question_is_told_what_may_be_asked(path: Path, request_line: bytes) -> None:
    reply = json.loads(await raw(path, request_line))
    assert reply == {"ok": False, "error": "ask one of ill, long, status"}


async def test_an_endless_question_is_cut_off_and_others_are_served(path: Path) -> None:
    assert await raw(path, b"x" * (4 * MAX_REQUEST_BYTES)) == b""
    assert await raw(path, b"[" * (MAX_REQUEST_BYTES - 2) + b"\n") != b""
    assert await asyncio.to_thread(ask, path, "status") == {"well": True}


async def test_an_answer_that_fails_tells_no_exception(path: Path) -> None:
    with pytest.raises(DaemonSilentError, match="see the node's log") as caught:
        await asyncio.to_thread(ask, path, "ill")
    assert "secret text" not in str(caught.value)


async def test_an_answer_is_capped(path: Path) -> None:
    with pytest.raises(DaemonSilentError, match="too long"):
        await asyncio.to_thread(ask, path, "long")


async def test_more_askers_than_a_few_are_turned_away(path: Path) -> None:
    silent = [await asyncio.open_unix_connection(str(path)) for _ in range(8)]
    assert await raw(path, b'{"ask": "status"}\n') == b""
    for _, writer in silent:
        writer.close()


async def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with pytest.raises(DaemonAwayError):
        ask(path, "status")
    server = ControlServer(path, {"status": well})
    await server.start()
    assert await asyncio.to_thread(ask, path, "status") == {"well": True}
    await server.close()
    assert not path.exists()


async def test_a_deep_state_folder_has_a_socket_too(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    server = ControlServer(folder / "control.sock", {"status": well})
    await server.start()
    assert await asyncio.to_thread(ask, folder / "control.sock", "status") == {"well": True}
    await server.close()


async def test_a_long_answer_may_take_longer_than_the_daemon_may_be_silent(
    copying: Copying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_node.status.server.TIMEOUT_S", 0.01)
    monkeypatch.setattr("fleet_node.status.server.WORKING_EVERY_S", 0.01)
    loop, told = asyncio.get_running_loop(), []

    def working(done: int, of: int) -> None:
        told.append((done, of))
        if len(told) == 5:
            loop.call_soon_threadsafe(copying.finish.set)

    def asker() -> str:
        with asking(copying.file.with_name("copying.sock"), "copy", working) as answer:
            return Path(answer["path"]).read_text()

    assert await asyncio.to_thread(asker) == "half"
    assert set(told) == {(1, 2)}
    await copying.cleared.wait()
    assert not copying.cancelled


async def test_a_long_answer_ends_when_its_asker_goes_away(copying: Copying) -> None:
    _, writer = await asyncio.open_unix_connection(str(copying.file.with_name("copying.sock")))
    writer.write(b'{"ask": "copy"}\n')
    await copying.begun.wait()
    writer.close()
    await copying.cleared.wait()
    assert copying.cancelled
    assert not copying.file.exists()


async def test_a_daemon_that_stops_clears_away_what_it_was_making(tmp_path: Path) -> None:
    copying = Copying(tmp_path / "copy")
    server = ControlServer(tmp_path / "copying.sock", {}, {"copy": copying})
    await server.start()
    asker = asyncio.create_task(asyncio.to_thread(ask, tmp_path / "copying.sock", "copy"))
    await copying.begun.wait()
    await server.close()
    assert not copying.file.exists()
    with pytest.raises(DaemonSilentError):
        await asker


async def test_a_long_answer_that_fails_tells_no_exception(tmp_path: Path) -> None:
    async def failing(progress: Progress, afterwards: ExitStack) -> Mapping[str, Any]:
        del progress, afterwards
        raise RuntimeError("secret text")

    server = ControlServer(tmp_path / "control.sock", {"status": well}, {"copy": failing})
    await server.start()
    with pytest.raises(DaemonSilentError, match="see the node's log") as caught:
        await asyncio.to_thread(ask, tmp_path / "control.sock", "copy")
    assert "secret text" not in str(caught.value)
    await server.close()


def test_without_a_daemon_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(DaemonAwayError):
        ask(tmp_path / "control.sock", "status")


@pytest.mark.parametrize("reply", [b"", b"garbage", b"[]", b'{"ok": true}', b'{"ok": true, "answer": 1}', b'{"ok": 0}'])
def test_an_answer_that_makes_no_sense_is_no_answer(tmp_path: Path, reply: bytes) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(DaemonSilentError):
            ask(path, "status")
        answering.join()
