"""CPU microseconds per command and per telemetry frame inside the server's rooms, on SQLite, without any wire.

Run: python tests/load/micro_server_rooms.py [--nodes 100] [--rounds 10]
Figures, not verdicts: CPU time of all threads of the process, so that a busy machine changes little; `single_*` are
wall time, commits with synchronous=FULL among it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sqlalchemy import create_engine

from fleet.clock import SystemClock
from fleet.heap import settle_heap
from fleet.v1 import command_pb2 as wire
from fleet.v1.telemetry_pb2 import TelemetryBatch
from fleet_server.commands.service import PendingCommand
from fleet_server.database.engine import Database
from fleet_server.database.schema import metadata
from fleet_server.telemetry.service import TelemetryService
from tests.unit.fleet_server.commands.room import BusyLane, Room, open_room, order, report

BATCH = 32


async def measure_commands(room: Room, nodes: int, rounds: int) -> dict[str, float]:
    """CPU microseconds per command of each step, at 32 commands a node and call."""
    records = [await room.add_node(f"n{number}") for number in range(nodes)]
    epochs = {record.node_id: await room.open_stream(record.node_id) for record in records}
    room.commands.hand_over_to(dict.fromkeys(epochs, BusyLane()).get)
    spent = dict.fromkeys(("issue", "claim", "accept", "result", "both"), 0.0)
    last = dict.fromkeys(epochs, 0)
    for number in range(rounds):
        started = time.process_time()
        await room.commands.issue("bench", order("*", count=BATCH, summary_only=True))
        spent["issue"] += time.process_time() - started

        started = time.process_time()
        claimed = await asyncio.gather(
            *(
                room.commands.claim_pending(node_id, epoch, after_seq=last[node_id], limit=BATCH)
                for node_id, epoch in epochs.items()
            )
        )
        spent["claim"] += time.process_time() - started
        by_node = dict(zip(epochs, claimed, strict=True))
        last = {node_id: commands[-1].seq for node_id, commands in by_node.items()}
        if number % 2:
            spent["both"] += await _report(room, by_node, wire.COMMAND_STATE_ACCEPTED, wire.COMMAND_STATE_SUCCEEDED)
        else:
            spent["accept"] += await _report(room, by_node, wire.COMMAND_STATE_ACCEPTED)
            spent["result"] += await _report(room, by_node, wire.COMMAND_STATE_SUCCEEDED)
    total = nodes * rounds * BATCH
    halves = {"issue": total, "claim": total, "accept": total / 2, "result": total / 2, "both": total / 2}
    return {f"{name}_us_per_command": spent[name] / halves[name] * 1e6 for name in spent}


async def _report(room: Room, by_node: dict[str, list[PendingCommand]], *states: int) -> float:
    frames = {
        node_id: [
            report(command, state, output=b'{"ok":true}' if state >= 5 else b"", finished_at_ms=1)
            for state in states
            for command in commands
        ]
        for node_id, commands in by_node.items()
    }
    started = time.process_time()
    await asyncio.gather(*(room.commands.record_reports(node_id, each) for node_id, each in frames.items()))
    return time.process_time() - started


async def measure_single(room: Room) -> dict[str, float]:
    """Wall microseconds of each step for one command alone: what a quiet fleet pays."""
    record = await room.add_node("alone")
    epoch = await room.open_stream(record.node_id)
    spent = dict.fromkeys(("issue", "claim", "report"), 0.0)
    count, last = 200, 0
    for _ in range(count):
        started = time.perf_counter()
        await room.commands.issue("bench", order("alone"))
        issued = time.perf_counter()
        claimed = await room.commands.claim_pending(record.node_id, epoch, after_seq=last, limit=BATCH)
        sent = time.perf_counter()
        await room.commands.record_reports(record.node_id, [report(claimed[0], wire.COMMAND_STATE_SUCCEEDED)])
        spent["issue"] += issued - started
        spent["claim"] += sent - issued
        spent["report"] += time.perf_counter() - sent
        last = claimed[-1].seq
    return {f"single_{name}_us": value / count * 1e6 for name, value in spent.items()}


def _telemetry_frames(batch_seq: int, count: int, samples: int) -> list[bytes]:
    """Frames of `samples` series each, as a node would send them."""
    frames = []
    for number in range(count):
        chance = random.Random(number)
        batch = TelemetryBatch(
            batch_seq=batch_seq + number,
            base_time_ms=SystemClock().now_ms() + number,
            series=range(samples),
            time_offset_ms=[chance.randrange(3) for _ in range(samples)],
            values=[round(chance.gauss(50, 10), 2) if each % 2 else chance.randrange(10**9) for each in range(samples)],
        )
        frames.append(batch.SerializeToString())
    return frames


async def measure_telemetry(room: Room) -> dict[str, float]:
    """CPU microseconds per frame of 10 samples, and per 1,000 samples in full frames: ingest alone, and to the end."""
    telemetry = TelemetryService(
        database=room.database,
        clock=room.clock,
        nodes=room.nodes,
        metrics=room.metrics.telemetry,
        retention_s=3600,
    )
    figures: dict[str, float] = {}
    for label, nodes, count, samples in (("small", 20, 2000, 10), ("full", 4, 60, 5000)):
        streams = []
        for number in range(nodes):
            node = await room.add_node(f"{label}{number}")
            streams.append(telemetry.open_stream(node.node_id, 0, lambda _: None))
        definitions = _definitions(samples)
        rest = _telemetry_frames(len(definitions) + 1, count, samples)
        for stream in streams:
            for frame in definitions:
                stream.ingest_nowait(frame)
        await telemetry.flush()
        ingest = stored = 0.0
        for stream in streams:
            started = time.process_time()
            for frame in rest:
                stream.ingest_nowait(frame)
            ingested = time.process_time()
            await telemetry.flush()
            ingest += ingested - started
            stored += time.process_time() - started
        unit, total = ("frame", nodes * count) if label == "small" else ("1000_samples", nodes * count * samples / 1000)
        figures[f"telemetry_{label}_ingest_us_per_{unit}"] = ingest / total * 1e6
        figures[f"telemetry_{label}_stored_us_per_{unit}"] = stored / total * 1e6
        for stream in streams:
            stream.close()
    telemetry.close()
    return figures


def _definitions(count: int) -> list[bytes]:
    """Frames that define series, a thousand each."""
    frames = []
    for start in range(0, count, 1000):
        batch = TelemetryBatch(batch_seq=1 + start // 1000)
        for number in range(start, min(start + 1000, count)):
            batch.definitions.add(series=number, name=f"host.metric.{number}", kind=1, unit="percent")
        frames.append(batch.SerializeToString())
    return frames


async def run(nodes: int, rounds: int) -> dict[str, float]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/fleet.db"
        engine = create_engine(url)
        metadata.create_all(engine)
        engine.dispose()
        database = Database(url)
        database.start()
        try:
            room = await open_room(database, SystemClock())
            settle_heap()  # as the server does
            figures = await measure_commands(room, nodes, rounds)
            figures |= await measure_single(room)
            figures |= await measure_telemetry(room)
        finally:
            await database.close()
    return figures


def main() -> None:
    """Print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    figures = asyncio.run(run(arguments.nodes, arguments.rounds))
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
