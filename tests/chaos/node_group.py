"""Many whole nodes in one process: `python -m tests.chaos.node_group SPEC`.

Each has its own link, journal, drivers and run log, as a `fleet-node run` has; what kills this process kills all of
them. SIGTERM ends every node in order. A node that fails ends the process with 1: that is a finding.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet import logs
from fleet.backoff import BackoffPolicy
from fleet.identity import load_node_keys
from fleet_node.app import Node, NodeFailedError, Parts
from fleet_node.commands.opening import ensure_journal
from fleet_node.config import Settings
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import load_membership

DRIVERS = ("simulated", "chaos")
_BACKOFF = BackoffPolicy(initial_s=0.2, maximum_s=4.0, stable_s=5.0)
"""The product's own reaches a minute, most of which a short run would spend with nodes that wait."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the process reads when it starts.

    Args:
        folders: state folder of each node.
        endpoints: gateways, by way of this process's proxies.
    """

    folders: list[str]
    endpoints: list[str]

    def write(self, path: Path) -> Path:
        """Keep it for a process to read."""
        path.write_text(json.dumps(asdict(self)))
        return path


def run_log(folder: Path) -> Path:
    """The drivers' own log of the node whose state folder it is: beside it, so that nothing of the node's writes it."""
    return folder.parent / f"{folder.name}.runs.jsonl"


def driver_tables(folder: Path) -> dict[str, dict[str, object]]:
    """Settings of both drivers: one log for what either runs."""
    return {
        "simulated": {"log_path": str(run_log(folder)), "series": 4},
        "chaos": {"log_path": str(run_log(folder))},
    }


def settings_of(folder: Path, endpoints: list[str]) -> Settings:
    """Settings of a node of the suite."""
    return Settings(
        state_dir=folder,
        endpoints=tuple(endpoints),
        metrics_listen="",
        telemetry_interval_s=10.0,
        concurrency=8,
        drivers_enabled=DRIVERS,
        driver_tables=driver_tables(folder),
    )


async def _serve(spec: Spec) -> None:
    nodes = [_node(Path(path), spec.endpoints) for path in spec.folders]
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, lambda: [node.stop() for node in nodes])
    print("nodes_started", flush=True)
    await asyncio.gather(*(node.run() for node in nodes))
    print("nodes_stopped", flush=True)


def _node(path: Path, endpoints: list[str]) -> Node:
    folder = StateFolder(path)
    folder.lock()
    membership = load_membership(folder.membership)
    assert membership is not None
    ensure_journal(folder.journal, membership.node_id)
    settings = settings_of(path, endpoints)
    drivers = DriverRegistry.load(settings.drivers_enabled, settings.driver_tables)
    assert not drivers.problems, drivers.problems
    parts = Parts(settings, folder, membership, load_node_keys(folder.path), drivers, alone=False)
    return Node(parts, backoff=_BACKOFF)


def main() -> int:
    """Run the nodes of the spec until SIGTERM."""
    logs.configure(sys.stderr, level="warning")
    try:
        asyncio.run(_serve(Spec(**json.loads(Path(sys.argv[1]).read_text()))))
    except NodeFailedError as error:
        print(f"node_failed: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
