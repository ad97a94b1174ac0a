"""Fault: a node is killed with SIGKILL at every step of a rotation of all its credentials.

Must hold: it comes back with a credential that works, the rotation is done then, no command is lost and none runs
twice, and there are never more than two api_keys of it that open anything.
"""

import asyncio
import itertools
import signal
from collections.abc import Sequence
from pathlib import Path

from fleet.identity import load_node_keys
from fleet.v1 import admin_pb2, command_pb2
from tests.fakes.process import Processes
from tests.integration.installation import Installation
from tests.integration.processes import NodeProcess
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
INTERRUPTED = command_pb2.COMMAND_STATE_INTERRUPTED


class Victim(NodeProcess):
    """A node whose process dies at a point, once it is armed."""

    @property
    def _armed(self) -> Path:
        return self.settings.state_dir.parent / "armed"

    def program(self) -> Sequence[str | Path]:
        return ["tests.faults.rotation_victim", self._armed]

    def arm(self, point: int) -> None:
        draft = self._armed.with_suffix(".new")
        draft.write_text(str(point))
        draft.rename(self._armed)

    def disarm(self) -> None:
        self._armed.unlink(missing_ok=True)


async def rotate(installation: Installation) -> None:
    selector = admin_pb2.Selector(patterns=["n-1"])
    request = admin_pb2.RotateNodesRequest(selector=selector, api_key=True, identity=True, sealing=True)
    await installation.owner.ask("RotateNodes", request)


async def live_api_keys(installation: Installation) -> int:
    now_ms = installation.clock.now_ms()
    text = f"SELECT count(*) FROM api_keys WHERE revoked_at_ms = 0 OR revoked_at_ms > {now_ms}"
    return int(await installation.server.database.read(lambda conn: conn.exec_driver_sql(text).scalar()))


async def test_kill_at_every_step(installation: Installation, processes: Processes) -> None:
    node = Victim(await installation.enroll("n-1"), processes)
    installation.nodes["n-1"] = node
    await node.start()
    commands: list[admin_pb2.CommandView] = []
    for point in itertools.count(1):
        former = load_node_keys(node.folder.path).fingerprint
        node.arm(point)
        await rotate(installation)
        issued = await installation.owner.issue("n-1", count=3)
        dying = asyncio.create_task(asyncio.to_thread(node.process.wait_exit))  # type: ignore[union-attr]
        settled = asyncio.create_task(wait_settled(installation, node, former))
        await asyncio.wait({dying, settled}, return_when=asyncio.FIRST_COMPLETED)
        node.disarm()
        survived = not dying.done()
        if survived:
            await node.kill()
        assert await dying == -signal.SIGKILL
        settled.cancel()
        assert await live_api_keys(installation) <= 2
        await node.start()
        await wait_settled(installation, node, former)
        assert await live_api_keys(installation) == 1
        views = await installation.owner.outcomes(issued.issue_id)
        assert {view.state for view in views} <= {SUCCEEDED, INTERRUPTED}  # of what ran when it died nobody knows
        commands += views
        if survived:
            break
    assert point > 15
    runs = node.runs()
    assert max(runs.values()) == 1
    assert {view.command_id.hex() for view in commands if view.state == SUCCEEDED} <= set(runs)
    assert (await installation.owner.node("n-1")).last_seq == len(commands)


async def wait_settled(installation: Installation, node: NodeProcess, former: bytes) -> None:
    """The server knows the node by new keys, and neither side has anything left to do."""
    await installation.owner.wait_node(
        "n-1", lambda view: view.online and not view.rotating and view.fingerprint != former
    )
    await eventually(lambda: not node.folder.rotation.exists(), "the node has settled")
