"""`fleet-server export` as a process beside a server: samples of a node reach a receiver over HTTP, each of them."""

import asyncio
import os
from pathlib import Path

from tests.fakes.otlp_receiver import HttpReceiver, Reply
from tests.fakes.process import Processes, RunningProcess
from tests.integration.installation import Installation
from tests.integration.processes import BIN
from tests.integration.waiting import eventually


def start(processes: Processes, installation: Installation, receiver: HttpReceiver, headers: Path) -> RunningProcess:
    settings = {
        "database_url": "",
        "export_url": receiver.url,
        "export_headers_file": str(headers),
        "export_metrics_listen": "off",
    }
    pairs = [part for name, value in settings.items() if value for part in ("--set", f"{name}={value}")]
    return processes.start(
        [BIN / "fleet-server", "export", "--data-dir", installation.data, "--backfill", "1h", *pairs], name="export"
    )


def ticks(receiver: HttpReceiver) -> list[float]:
    return [
        point.as_double
        for request in receiver.requests
        for resource in request.resource_metrics
        for metric in resource.scope_metrics[0].metrics
        if metric.name == "simulated.ticks"
        for point in metric.sum.data_points
    ]


async def test_every_sample_reaches_a_receiver_that_was_away(
    installation: Installation, processes: Processes, tmp_path: Path
) -> None:
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer hush\n")
    os.chmod(headers, 0o600)
    await installation.add_node("n-1", telemetry_interval_s=0.1, simulated={"series": 2})
    with HttpReceiver() as receiver:
        receiver.replies = [Reply(503, b"starting"), Reply(429, b"busy", {"Retry-After": "0"})]
        process = start(processes, installation, receiver, headers)
        await eventually(lambda: len(ticks(receiver)) > 10, "samples reach the receiver")
        assert {name: value for name, value in receiver.seen[0][1].items() if name == "Authorization"} == {
            "Authorization": "Bearer hush"
        }
        process.terminate()
        assert await asyncio.to_thread(process.wait_exit) == 0
        seen = ticks(receiver)
        assert seen == [float(number + 1) for number in range(len(seen))]
        assert "hush" not in process.tail(1000)

        again = start(processes, installation, receiver, headers)
        await eventually(lambda: ticks(receiver)[-1] > len(seen), "it goes on where it was")
        again.terminate()
        assert await asyncio.to_thread(again.wait_exit) == 0
