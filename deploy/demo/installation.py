"""One installation under a state folder: a server, its nodes, an operator's profile, their logs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.demo.programs import WAIT_S, Programs, end_in_order, free_ports
from deploy.demo.stage import Broken
from tests.fakes.process import RunningProcess

NODES = ("press-1", "press-2", "oven-1")


class Installation(Programs):
    """See the module's text.

    Args:
        root: the repository: paths are shown relative to it.
        state: an empty 0700 folder.
        waiting: told what is waited for, and "" when that is over.
    """

    def __init__(self, root: Path, state: Path, waiting: Callable[[str], None]) -> None:
        super().__init__(root, state, waiting)
        self.data = state / "server"
        self.database = self.data / "fleet.db"
        self.gateway_port, self.admin_port, *probe_ports = free_ports(2 + len(NODES))
        self.probe_ports = dict(zip(NODES, probe_ports, strict=True))
        self.server: RunningProcess | None = None
        self._write_config()

    # -- places -----------------------------------------------------------------------------------------------------
    @property
    def gateway(self) -> str:
        """Where nodes connect."""
        return f"127.0.0.1:{self.gateway_port}"

    @property
    def admin(self) -> str:
        """Where operators connect."""
        return f"127.0.0.1:{self.admin_port}"

    @property
    def ca_file(self) -> Path:
        """The server's TLS CA."""
        return self.data / "tls" / "ca.crt"

    @property
    def first_config(self) -> Path:
        """The server's config file."""
        return self.state / "server.toml"

    @property
    def join_token_file(self) -> Path:
        """The join token, 0600."""
        return self.state / "join.token"

    def run_logs(self) -> list[Path]:
        """Those of all nodes."""
        return [self.run_log(node) for node in NODES]

    # -- the server -------------------------------------------------------------------------------------------------
    def start_server(self) -> RunningProcess:
        """Start the server and wait until it is ready."""
        self.server = self._start("fleet-server", "run", "--config", self.shown(self.first_config), name="server")
        self.server.wait_line(r'"event": "ready"', WAIT_S)
        return self.server

    # -- the nodes --------------------------------------------------------------------------------------------------
    def stop_node(self, node: str) -> int:
        """End a node in order; its exit code."""
        process = self.nodes.pop(node)
        process.terminate()
        return process.wait_exit(WAIT_S)

    def lead(self, node: str, peer_id: str, link: str) -> None:
        """Have a node call a peer over a link (host:port) from its next start on."""
        table = f'[routes.peer_endpoints]\n{peer_id} = "{link}"\n'
        self.node_config(node).write_text(self._node_toml(node) + table)

    def kill_node(self, node: str) -> None:
        """kill -9."""
        self.nodes.pop(node).kill()

    # -- fleetctl ---------------------------------------------------------------------------------------------------
    def fleet_node(self, *arguments: str) -> str:
        """Run a verb of fleet-node to its end; what it printed."""
        return self._program("fleet-node", *arguments).stdout

    def fleetctl_refused(self, *arguments: str) -> str:
        """Run a verb of fleetctl that is meant to end with 1; what it says on standard error."""
        return self._program("fleetctl", *arguments, "--output", "json", expect=1).stderr

    def fleetctl_lines(self, *arguments: str) -> list[Any]:
        """Run a verb of fleetctl that prints JSON Lines."""
        answer = self._program("fleetctl", *arguments, "--output", "json")
        return [json.loads(line) for line in answer.stdout.splitlines()]

    def start_fleetctl(self, *arguments: str, name: str) -> RunningProcess:
        """Start fleetctl and let it run."""
        return self._start("fleetctl", *arguments, "--output", "json", name=name)

    # -- waiting and ending -----------------------------------------------------------------------------------------
    def wanted(self) -> list[RunningProcess]:
        """Nodes and the server."""
        return [*super().wanted(), *([self.server] if self.server is not None else [])]

    def end(self) -> None:
        """End everything that was started: nodes first, then the server."""
        try:
            end_in_order(self.nodes.values())
            end_in_order([self.server] if self.server is not None else [])
        finally:
            self.processes.end_all()

    def _write_config(self) -> None:
        self.first_config.write_text(
            f'data_dir = "{self.data}"\n'
            f'gateway_listen = "{self.gateway}"\n'
            f'admin_listen = "{self.admin}"\n'
            'metrics_listen = "off"\n'
            "heartbeat_interval_s = 1\n"
            "drain_deadline_s = 10\n"
            'log_format = "json"\n'
        )
        for node in NODES:
            self.node_config(node).write_text(self._node_toml(node))
            self.node_config(node).chmod(0o600)

    def _node_toml(self, node: str) -> str:
        return (
            f'state_dir = "{self.state / node}"\n'
            f'name = "{node}"\n'
            'metrics_listen = ""\n'
            f'probe_listen = "127.0.0.1:{self.probe_ports[node]}"\n'
            "telemetry_interval_s = 0.5\n"
            "poll_interval_s = 1\n"
            "[labels]\n"
            'hall = "north"\n'
            "[drivers]\n"
            'enabled = ["host", "exec", "simulated"]\n'
            "[drivers.exec.programs.kernel]\n"  # the only program that operators may run here
            f'path = "{uname()}"\n'
            'args = ["-srm"]\n'
            "[drivers.simulated]\n"
            f'log_path = "{self.run_log(node)}"\n'
        )


def uname() -> str:
    """Where this machine keeps `uname`."""
    for folder in ("/usr/bin", "/bin"):
        if os.access(f"{folder}/uname", os.X_OK):
            return f"{folder}/uname"
    raise Broken("this machine has no uname in /usr/bin or /bin")
