"""A cluster under a state folder: PostgreSQL, two replicas, a balancer in front of them, nodes, and an operator.

Everything is a process of its own, from the programs that were installed beside this interpreter, and is ended by its
id. A replica that ends in order is started again, as a service manager would.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.demo.programs import WAIT_S, Programs, end_in_order, free_ports
from deploy.demo.stage import Broken
from fleet.identity import write_private
from tests.fakes.haproxy import CONFIGS, HaProxy, adapted
from tests.fakes.postgres import PostgresServer
from tests.fakes.process import RunningProcess

REPLICAS = ("fleet-0", "fleet-1")
NODES = tuple(f"pump-{number}" for number in range(1, 9))
_LOOK_AGAIN_S = 0.1


class Cluster(Programs):
    """See the module's text."""

    def __init__(self, root: Path, state: Path) -> None:
        super().__init__(root, state, lambda _: None)  # the live view shows what goes on
        self._tell: Callable[[str], None] = lambda text: None
        ports = free_ports(2 + 3 * len(REPLICAS))
        self.gateway, self.admin = (f"127.0.0.1:{port}" for port in ports[:2])
        self._ports = {name: ports[2 + 3 * number : 5 + 3 * number] for number, name in enumerate(REPLICAS)}
        self.replicas: dict[str, RunningProcess] = {}
        self.started: dict[str, int] = dict.fromkeys(REPLICAS, 0)
        self.balancer: HaProxy | None = None
        self._postgres: PostgresServer | None = None
        self._ending = threading.Event()
        self._keeper: threading.Thread | None = None

    def tell_with(self, tell: Callable[[str], None]) -> None:
        """Tell from now on what happens by itself, a line each, on any thread."""
        self._tell = tell

    # -- places -----------------------------------------------------------------------------------------------------
    @property
    def ca_file(self) -> Path:
        """The TLS CA of the replicas."""
        return self.state / REPLICAS[0] / "tls" / "ca.crt"

    @property
    def first_config(self) -> Path:
        """The first replica's config file."""
        return self.state / f"{REPLICAS[0]}.toml"

    # -- the cloud --------------------------------------------------------------------------------------------------
    def start_postgres(self) -> str:
        """Start it, durable; its version."""
        self._postgres = PostgresServer(durable=True)
        url = self._postgres.url(self._postgres.create_database())
        write_private(self.state / "secret.key", base64.b64encode(os.urandom(32)) + b"\n")
        for name in REPLICAS:
            self._write_server_config(name, url)
        return f"{self._postgres.version // 10_000}.{self._postgres.version % 10_000}"

    def server_config(self, replica: str) -> str:
        """A replica's config file, as a person types it."""
        return self.shown(self.state / f"{replica}.toml")

    def start_replica(self, name: str) -> None:
        """Start a replica and wait until it is ready."""
        arguments = ["run", "--config", self.server_config(name)]
        self.started[name] += 1
        process = self._start("fleet-server", *arguments, name=f"{name}.{self.started[name]}")
        process.wait_line(r'"event": "ready"', WAIT_S)
        self.replicas[name] = process

    def kill_replica(self, name: str) -> None:
        """kill -9."""
        self.replicas[name].kill()

    def start_balancer(self) -> None:
        """Start HAProxy with the config that is shipped, in front of these replicas."""
        servers: dict[str, str] = {}
        for name, (gateway, admin, metrics) in self._ports.items():
            servers[name] = str(metrics)
            servers[f"{name}:7443"] = f"127.0.0.1:{gateway}"
            servers[f"{name}:7444"] = f"127.0.0.1:{admin}"
        config = adapted((CONFIGS / "haproxy.cfg").read_text(), servers, {"7443": self.gateway, "7444": self.admin}, {})
        self.balancer = HaProxy(self.processes, self.state / "lb", config)
        self.balancer.start()

    def balanced(self) -> dict[str, str]:
        """What the balancer thinks of the replicas' gateways."""
        return {} if self.balancer is None else self.balancer.statuses("gateway")

    def keep_replicas(self) -> None:
        """From now on start a replica again when it ended: a service manager does that, with the new release."""
        self._keeper = threading.Thread(target=self._keep, name="service-manager", daemon=True)
        self._keeper.start()

    # -- the sites --------------------------------------------------------------------------------------------------
    def join(self, token_file: Path) -> None:
        """Enroll all nodes with a token that approves by itself, and start them."""
        for node in NODES:
            self._write_node_config(node)
        for process in [self.start_enrolling(node, token_file) for node in NODES]:
            if process.wait_exit(WAIT_S) != 0:
                raise Broken(f"{process.name} did not end well:\n{process.tail()}")
        for node in NODES:
            self.start_node(node)

    # -- waiting and ending -----------------------------------------------------------------------------------------
    def end(self) -> None:
        """End everything that was started, nodes first."""
        self._ending.set()
        with contextlib.ExitStack() as whatever_happens:
            if self._postgres is not None:
                whatever_happens.callback(self._postgres.stop)
            whatever_happens.callback(self.processes.end_all)
            if self._keeper is not None:
                self._keeper.join(WAIT_S)
            end_in_order(self.nodes.values())

    def _keep(self) -> None:
        while not self._ending.wait(_LOOK_AGAIN_S):
            for name, process in list(self.replicas.items()):
                if process.exit_code is not None and not self._ending.is_set():
                    self._tell(f"{name} ended with {_ended(process.exit_code)}; its service manager starts it anew")
                    try:
                        self.start_replica(name)
                    except (TimeoutError, AssertionError):
                        return  # whoever waits for it to be ready finds out, and shows its log
                    self._tell(f"{name} is ready again")

    def _write_server_config(self, name: str, url: str) -> None:
        gateway, admin, metrics = self._ports[name]
        write_private(
            self.state / f"{name}.toml",
            _toml(
                replica_id=name,
                data_dir=str(self.state / name),
                database_url=url,
                secret_encryption_key_file=str(self.state / "secret.key"),
                gateway_listen=f"127.0.0.1:{gateway}",
                admin_listen=f"127.0.0.1:{admin}",
                metrics_listen=f"127.0.0.1:{metrics}",
                gateway_endpoints=[self.gateway],
                heartbeat_interval_s=2,
                drain_deadline_s=20,
                log_format="json",
            ),
        )

    def _write_node_config(self, node: str) -> None:
        text = _toml(state_dir=str(self.state / node), name=node, metrics_listen="", telemetry_interval_s=1)
        drivers = f'[drivers]\nenabled = ["simulated"]\n[drivers.simulated]\nlog_path = "{self.run_log(node)}"\n'
        write_private(self.node_config(node), text + drivers.encode())


def _toml(**settings: str | int | Sequence[str]) -> bytes:
    """Settings as TOML; a JSON text, number or list of texts is one of TOML, too."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()).encode()


def _ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
