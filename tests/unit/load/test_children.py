"""Load processes obey, fail aloud and end."""

from pathlib import Path

import psutil
import pytest

from tests.load.children import Child
from tests.load.context import Context

_SERVER = "tests.load.bare.server:BareServer"
_CLIENT = "tests.load.bare.client:BareClient"


@pytest.mark.parametrize("tls", [False, True])
async def test_bare_server_and_client_exchange_messages(tmp_path: Path, tls: bool) -> None:
    ctx = Context(tmp_path, quick=True)
    files = ctx.tls_files()
    pair = {"cert": files["cert"], "key": files["key"]} if tls else {"cert": None, "key": None}
    async with ctx.child(_SERVER) as server, ctx.child(_CLIENT) as client:
        port = (await server.call("start", **pair))["port"]
        await client.call("echo", address=f"127.0.0.1:{port}", count=2, ca=files["ca"] if tls else None)
        await server.call("wait_streams", count=2)
        assert len((await server.call("round_trips", count=3, payload_bytes=10))["seconds"]) == 3
        assert (await server.call("fan_out", payload_bytes=10))["seconds"] > 0


async def test_a_bare_client_tells_of_streams_that_ended(tmp_path: Path) -> None:
    ctx = Context(tmp_path, quick=True)
    async with ctx.child(_SERVER) as server, ctx.child(_CLIENT) as client:
        port = (await server.call("start", cert=None, key=None))["port"]
        await client.call("echo", address=f"127.0.0.1:{port}", count=2)
        await server.call("wait_streams", count=2)
        await client.call("check_open")
        await server.call("close")  # aborts both
        with pytest.raises(ChildProcessError, match=r"[12] of 2 streams ended"):
            await _until_it_fails(client, "check_open")


async def _until_it_fails(child: Child, do: str) -> None:
    while True:
        await child.call(do)


async def test_a_child_tells_what_failed_and_goes_on(tmp_path: Path) -> None:
    async with Context(tmp_path, quick=True).child(_CLIENT) as client:
        with pytest.raises(ChildProcessError, match="no_such_thing"):
            await client.call("no_such_thing")
        assert (await client.call("usage"))["rss_bytes"] > 0


async def test_a_child_ends_with_its_standard_input_and_a_killed_one_is_reported() -> None:
    before = set(psutil.Process().children())
    ended, killed = await Child.start(_CLIENT), await Child.start(_CLIENT)
    await ended.call("usage")
    started = set(psutil.Process().children()) - before
    assert len(started) == 2
    await ended.end()
    await killed.kill()
    with pytest.raises(ChildProcessError, match="it ended"):
        await killed.call("usage")
    assert not any(process.is_running() for process in started)
