"""What one command costs a node: verified, judged, journaled with fsync, run (no-op), its result journaled, reported.

`python -m tests.load.micro_node_commands [--commands N] [--batch B] [--profile]`: one commands room, driven as its
stream would, statements of B commands, the next one sent as soon as the last one's reports were taken.
"""

import argparse
import asyncio
import contextlib
import cProfile
import pstats
import resource
import tempfile
import time
from pathlib import Path

import uvloop

from fleet.clock import ServerTime, SystemClock
from fleet.envelope import Domain, Signer
from fleet.heap import settle_heap
from fleet.metrics import Registry
from fleet.sequence import StreamContext
from fleet.v1 import command_pb2, gateway_pb2
from fleet_node.commands.journal import Journal
from fleet_node.commands.journal_file import ensure_journal
from fleet_node.commands.service import CommandService
from fleet_node.commands.store import JournalStore
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.link.frames import encode_reports
from fleet_node.observability.metrics import CommandMetrics
from tests.unit.fleet_node.commands.node import CLUSTER, NODE, FixedTrust

_BINDING = b"b" * 32


class Wakes:
    """The uplink of a stream as the link's writer waits on it: an event, and nothing that the link would not do."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    def send_control(self, control: gateway_pb2.NodeControl) -> None:
        raise RuntimeError(f"the node had something to say against it: {control}")

    def wake(self) -> None:
        self._woken.set()

    async def wait(self) -> None:
        await self._woken.wait()
        self._woken.clear()


def statements(signer: Signer, commands: int, batch: int) -> list[command_pb2.CommandFrame]:
    """All frames, signed before the clock starts."""
    frames = []
    for first in range(1, commands + 1, batch):
        statement = command_pb2.CommandStatement(
            cluster_id=CLUSTER,
            node_id=NODE,
            stream_binding=_BINDING,
            prev_seq=first - 1,
            signed_at_ms=SystemClock().now_ms(),
            commands=[
                command_pb2.Command(
                    command_id=seq.to_bytes(16, "big"),
                    monotonic_seq=seq,
                    actor="bench",
                    not_after_ms=4_000_000_000_000,
                    action="simulated.noop",
                    arguments=b"{}",
                )
                for seq in range(first, min(first + batch, commands + 1))
            ],
        ).SerializeToString()
        frames.append(command_pb2.CommandFrame(signed=signer.sign(Domain.COMMAND, statement)))
    return frames


async def drive(folder: Path, commands: int, batch: int, profile: cProfile.Profile | None) -> None:
    """Run them all and print what it cost."""
    signer = Signer.generate()
    clock = SystemClock()
    server_time = ServerTime(clock)
    server_time.observe(clock.now_ms())
    metrics = CommandMetrics(Registry())
    ensure_journal(folder / "journal.db", NODE)
    service = CommandService(
        journal=Journal(JournalStore(folder / "journal.db", NODE), commit_duration=metrics.commit_duration),
        registry=DriverRegistry.load(["simulated"], {}),
        trust=FixedTrust(signer, Signer.generate(), clock.now_ms()),  # type: ignore[arg-type]
        site="",
        clock=clock,
        server_time=server_time,
        metrics=metrics,
    )
    uplink = Wakes()
    stream = service.opened(StreamContext(CLUSTER, NODE, _BINDING), gateway_pb2.Welcome(), uplink)
    frames = [frame.SerializeToString() for frame in statements(signer, commands, batch)]
    finished = metrics.finished.labels("SUCCEEDED")
    reports_taken = given = 0
    settle_heap()  # as `fleet-node run` does
    started, cpu_before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    with profile or contextlib.nullcontext():
        for data in frames:
            frame = command_pb2.CommandFrame.FromString(data)
            await stream.command_frame(frame)
            given = min(given + batch, commands)
            while finished.value < given or reports_taken < given:
                await uplink.wait()
                while reports := stream.next_reports():
                    encode_reports(reports)
                    reports_taken += len(reports)
                    service.acked(command_pb2.Report.FromString(reports[-1]).report_no)
    wall_s = time.perf_counter() - started
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    user_us = (cpu.ru_utime - cpu_before.ru_utime) / commands * 1e6
    system_us = (cpu.ru_stime - cpu_before.ru_stime) / commands * 1e6
    commits = metrics.commit_duration.count
    await service.close()
    print(
        f"batch {batch:3d}: {commands / wall_s:7.0f} commands/s, a command {user_us:5.1f} us user"
        f" {system_us:5.1f} us system {commits / commands:5.3f} commits {reports_taken / commands:4.2f} reports"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=20_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args()
    for batch in options.batch:
        profile = cProfile.Profile() if options.profile else None
        with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(drive(Path(folder), options.commands, batch, profile))
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
