"""A cluster under a state folder: PostgreSQL, two replicas, a balancer in front of them, nodes, and an operator.

Everything is a process of its own, from the programs that were installed beside this interpreter, and is ended by its
id. A replica that ends in order is started again, as a service manager would.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploy.demo.installation import free_ports
from deploy.demo.stage import Broken
from fleet.identity import write_private
from tests.fakes.haproxy import CONFIGS, HaProxy, adapted
from tests.fakes.postgres import PostgresServer
from tests.fakes.process import Processes, RunningProcess

REPLICAS = ("fleet-0", "fleet-1")
NODES = tuple(f"pump-{number}" for number in range(1, 9))
WAIT_S = 60.0
_CALL_S = 90.0
_LOOK_AGAIN_S = 0.1
_TAIL_LINES = 10


class Cluster:
    """See the module's text.

    Args:
        root: the repository: paths are shown relative to it.
        state: an empty 0700 folder.
    """

    def __init__(self, root: Path, state: Path) -> None:
        self.root, self.state = root, state
        self._tell: Callable[[str], None] = lambda text: None
        self.logs = state / "logs"
        self.logs.mkdir(mode=0o700)
        self.profile = state / "fleetctl.toml"
        self.processes = Processes(self.logs)
        ports = free_ports(2 + 3 * len(REPLICAS))
        self.gateway, self.admin = (f"127.0.0.1:{port}" for port in ports[:2])
        self._ports = {name: ports[2 + 3 * number : 5 + 3 * number] for number, name in enumerate(REPLICAS)}
        self.replicas: dict[str, RunningProcess] = {}
        self.started: dict[str, int] = dict.fromkeys(REPLICAS, 0)
        self.nodes: dict[str, RunningProcess] = {}
        self.balancer: HaProxy | None = None
        self._postgres: PostgresServer | None = None
        self._bin = Path(sys.executable).parent
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
    def owner_token_file(self) -> Path:
        """The first owner's token, 0600."""
        return self.state / "owner.token"

    def run_log(self, node: str) -> Path:
        """Where the simulated driver of a node writes what it runs."""
        return self.logs / f"{node}.runs.jsonl"

    def shown(self, path: Path) -> str:
        """A path as a person types it from the repository."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    # -- the cloud --------------------------------------------------------------------------------------------------
    def start_postgres(self) -> str:
        """Start it, durable; its version."""
        self._postgres = PostgresServer(durable=True)
        url = self._postgres.url(self._postgres.create_database())
        write_private(self.state / "secret.key", base64.b64encode(os.urandom(32)) + b"\n")
        for name in REPLICAS:
            self._write_server_config(name, url)
        return f"{self._postgres.version // 10_000}.{self._postgres.version % 10_000}"

    def init(self) -> list[str]:
        """Make the installation; what `fleet-server init` printed."""
        answer = self._program("fleet-server", *self.init_arguments())
        return answer.stdout.splitlines()

    def init_arguments(self) -> list[str]:
        """Arguments of `fleet-server` that make the installation."""
        token = self.shown(self.owner_token_file)
        return ["init", "--config", self.server_config(REPLICAS[0]), "--owner-token-file", token]

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
        asking = {}
        for node in NODES:
            self._write_node_config(node)
            with token_file.open("rb") as token:
                arguments = ["enroll", "--config", self.shown(self.state / f"{node}.toml"), "--token-file", "-"]
                asking[node] = self._start("fleet-node", *arguments, name=f"{node}.enroll", stdin=token)
        for node, process in asking.items():
            if process.wait_exit(WAIT_S) != 0:
                raise Broken(f"{node} could not enroll:\n{process.tail()}")
        for node in NODES:
            config = self.shown(self.state / f"{node}.toml")
            self.nodes[node] = self._start("fleet-node", "run", "--config", config, name=node)

    # -- fleetctl ---------------------------------------------------------------------------------------------------
    def fleetctl(self, *arguments: str) -> Any:
        """Run a verb; the JSON that it printed, of JSON Lines the last, or None."""
        answer = self._program("fleetctl", *arguments, "--output", "json")
        text = answer.stdout.strip()
        if not text:
            return None
        try:
            return json.loads(text)
        except ValueError:
            return json.loads(text.splitlines()[-1])

    # -- waiting and ending -----------------------------------------------------------------------------------------
    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Return once `condition()` is true.

        Raises:
            Broken: not in time, or a node has ended.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            for name, process in self.nodes.items():
                if process.exit_code is not None:
                    raise Broken(f"{name} ended with code {process.exit_code} while waiting for: {what}")
            if time.monotonic() > deadline_s:
                raise Broken(f"not within {timeout_s:g} s: {what}")
            time.sleep(_LOOK_AGAIN_S)

    def tails(self) -> list[str]:
        """The last lines of every process that lives or ended badly."""
        lines: list[str] = []
        for each in self.processes.started:
            if each.exit_code != 0:
                lines += ["", f"{each.name} (process {each.pid}, exit code {each.exit_code}) said last:"]
                lines += [f"  {line}" for line in each.lines[-_TAIL_LINES:]]
        return lines

    def end(self) -> None:
        """End everything that was started, nodes first."""
        self._ending.set()
        with contextlib.ExitStack() as whatever_happens:
            if self._postgres is not None:
                whatever_happens.callback(self._postgres.stop)
            whatever_happens.callback(self.processes.end_all)
            if self._keeper is not None:
                self._keeper.join(WAIT_S)
            for process in self.nodes.values():
                process.terminate()
            for process in self.nodes.values():
                with contextlib.suppress(TimeoutError):
                    process.wait_exit(8.0)

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

    def _start(self, program: str, *arguments: str, name: str, stdin: Any = subprocess.DEVNULL) -> RunningProcess:
        return self.processes.start(
            [self._bin / program, *arguments], name, env=self._environment(), cwd=self.root, stdin=stdin
        )

    def _program(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            [str(self._bin / program), *arguments],
            env={**os.environ, **self._environment()},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CALL_S,
            check=False,
            start_new_session=True,  # Ctrl-C at the terminal is the demo's to handle
        )
        if answer.returncode != 0:
            said = answer.stderr.strip() or answer.stdout.strip()
            raise Broken(f"`{program} {' '.join(arguments)}` ended with {answer.returncode}:\n{said}")
        return answer

    def _environment(self) -> dict[str, str]:
        return {"FLEETCTL_PROFILE": str(self.profile), "NO_COLOR": "1"}

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
        write_private(self.state / f"{node}.toml", text + drivers.encode())


def _toml(**settings: str | int | Sequence[str]) -> bytes:
    """Settings as TOML; a JSON text, number or list of texts is one of TOML, too."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()).encode()


def _ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
