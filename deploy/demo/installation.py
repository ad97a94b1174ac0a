"""One installation under a state folder: a server, its nodes, an operator's profile, their logs.

Everything runs as its own process, from the programs that were installed beside this interpreter, and is ended by its
id. Waiting is for a condition, bounded, and gives up at once when a process that should live has ended.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.demo.stage import Broken
from tests.fakes.process import Processes, RunningProcess

NODES = ("press-1", "press-2", "oven-1")
WAIT_S = 45.0
"""Generous: it only ends a demo that is broken, on a machine however busy."""
_LOOK_AGAIN_S = 0.05
_CALL_S = 60.0
_END_S = 8.0
_TAIL_LINES = 12
_LEFT_OUT = frozenset({"timestamp", "level", "event", "logger", "component", "replica_id", "node_id"})


class Installation:
    """See the module's text.

    Args:
        root: the repository: paths are shown relative to it.
        state: an empty 0700 folder.
        waiting: told what is waited for, and "" when that is over.
    """

    def __init__(self, root: Path, state: Path, waiting: Callable[[str], None]) -> None:
        self.root, self.state = root, state
        self._waiting = waiting
        self.logs = state / "logs"
        self.logs.mkdir(mode=0o700)
        self.data = state / "server"
        self.database = self.data / "fleet.db"
        self.profile = state / "fleetctl.toml"
        self.processes = Processes(self.logs)
        self.gateway_port, self.admin_port = free_ports(2)
        self.server: RunningProcess | None = None
        self.nodes: dict[str, RunningProcess] = {}
        self._bin = Path(sys.executable).parent
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
    def owner_token_file(self) -> Path:
        """The first owner's token, 0600."""
        return self.state / "owner.token"

    @property
    def join_token_file(self) -> Path:
        """The join token, 0600."""
        return self.state / "join.token"

    def run_log(self, node: str) -> Path:
        """Where the simulated driver of a node writes what it runs."""
        return self.logs / f"{node}.runs.jsonl"

    def run_logs(self) -> list[Path]:
        """Those of all nodes."""
        return [self.run_log(node) for node in NODES]

    def shown(self, path: Path) -> str:
        """A path as a person types it from the repository."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    # -- the server -------------------------------------------------------------------------------------------------
    def init_server(self) -> list[str]:
        """Make the installation; what `fleet-server init` printed."""
        answer = self._program("fleet-server", *self.init_arguments())
        return answer.stdout.splitlines()

    def init_arguments(self) -> list[str]:
        """Arguments of `fleet-server` that make the installation."""
        token = self.shown(self.owner_token_file)
        return ["init", "--config", self.shown(self.state / "server.toml"), "--owner-token-file", token]

    def start_server(self) -> RunningProcess:
        """Start the server and wait until it is ready."""
        self.server = self._start(
            "fleet-server", "run", "--config", self.shown(self.state / "server.toml"), name="server"
        )
        self.server.wait_line(r'"event": "ready"', WAIT_S)
        return self.server

    # -- the nodes --------------------------------------------------------------------------------------------------
    def node_config(self, node: str) -> Path:
        """A node's config file."""
        return self.state / f"{node}.toml"

    def start_enrolling(self, node: str) -> RunningProcess:
        """Start `fleet-node enroll`; the join token goes in by its standard input."""
        with self.join_token_file.open("rb") as token:
            return self._start(
                "fleet-node",
                "enroll",
                "--config",
                self.shown(self.node_config(node)),
                "--token-file",
                "-",
                name=f"{node}.enroll",
                stdin=token,
            )

    def start_node(self, node: str, env: Mapping[str, str] | None = None) -> RunningProcess:
        """Start a node's daemon; returns before its stream is up.

        Args:
            node: its name.
            env: settings on top of its config file.
        """
        config = self.shown(self.node_config(node))
        self.nodes[node] = self._start("fleet-node", "run", "--config", config, name=node, env=env)
        return self.nodes[node]

    def stop_node(self, node: str) -> int:
        """End a node in order; its exit code."""
        process = self.nodes.pop(node)
        process.terminate()
        return process.wait_exit(WAIT_S)

    def kill_node(self, node: str) -> None:
        """kill -9."""
        self.nodes.pop(node).kill()

    # -- fleetctl ---------------------------------------------------------------------------------------------------
    def fleet_node(self, *arguments: str) -> str:
        """Run a verb of fleet-node to its end; what it printed."""
        return self._program("fleet-node", *arguments).stdout

    def fleetctl(self, *arguments: str, expect: int = 0, profile: Path | None = None) -> Any:
        """Run fleetctl; the JSON that it printed, or None when it printed nothing.

        Args:
            arguments: of fleetctl.
            expect: exit code.
            profile: of another person than the first owner.

        Raises:
            Broken: it ended with another code than `expect`.
        """
        env = {"FLEETCTL_PROFILE": str(profile)} if profile is not None else {}
        answer = self._program("fleetctl", *arguments, "--output", "json", expect=expect, env=env)
        return json.loads(answer.stdout) if answer.stdout.strip() else None

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
    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Return once `condition()` is true.

        Raises:
            Broken: not in time, or a process that should live has ended.
        """
        deadline_s = time.monotonic() + timeout_s
        self._waiting(what)
        while not condition():
            for process in self._wanted():
                if process.exit_code is not None:
                    raise Broken(f"{process.name} ended with code {process.exit_code} while waiting for: {what}")
            if time.monotonic() > deadline_s:
                raise Broken(f"not within {timeout_s:g} s: {what}")
            time.sleep(_LOOK_AGAIN_S)
        self._waiting("")

    def tails(self) -> list[str]:
        """The last lines of every process that lives or ended badly, as a person reads them."""
        wanted = self._wanted()
        lines: list[str] = []
        for each in self.processes.started:
            if each in wanted or each.exit_code not in (None, 0):
                lines += ["", f"{each.name} (process {each.pid}, exit code {each.exit_code}) said last:"]
                lines += [f"  {readable(line)}" for line in each.lines[-_TAIL_LINES:]]
        return lines

    def end(self) -> None:
        """End everything that was started: nodes first, then the server, each in order and within bounds."""
        with ExitStack() as whatever_happens:
            whatever_happens.callback(self.processes.end_all)
            for group in (list(self.nodes.values()), [self.server] if self.server is not None else []):
                for process in group:
                    process.terminate()
                deadline_s = time.monotonic() + _END_S
                for process in group:
                    _wait_gone(process, deadline_s)

    def _wanted(self) -> list[RunningProcess]:
        return [*self.nodes.values(), *([self.server] if self.server is not None else [])]

    def _start(
        self,
        program: str,
        *arguments: str,
        name: str,
        env: Mapping[str, str] | None = None,
        stdin: Any = subprocess.DEVNULL,
    ) -> RunningProcess:
        return self.processes.start(
            [self._bin / program, *arguments],
            name,
            env={**self._environment(), **(env or {})},
            cwd=self.root,
            stdin=stdin,
        )

    def _program(
        self, program: str, *arguments: str, expect: int = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            [str(self._bin / program), *arguments],
            env={**os.environ, **self._environment(), **(env or {})},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CALL_S,
            check=False,
            start_new_session=True,  # Ctrl-C at the terminal is the demo's to handle
        )
        with (self.logs / f"{program}.log").open("a") as log:
            log.write(f"{program} {' '.join(arguments)} -> {answer.returncode}\n{answer.stderr}")
        if answer.returncode != expect:
            said = answer.stderr.strip() or answer.stdout.strip()
            raise Broken(f"`{program} {' '.join(arguments)}` ended with {answer.returncode}, not {expect}:\n{said}")
        return answer

    def _environment(self) -> dict[str, str]:
        return {"FLEETCTL_PROFILE": str(self.profile), "NO_COLOR": "1"}

    def _write_config(self) -> None:
        (self.state / "server.toml").write_text(
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


def readable(line: str) -> str:
    """A JSON log line as time, level, event and fields; anything else as it is."""
    try:
        fields = json.loads(line)
        time_of_day, level, event = fields["timestamp"][11:23], fields["level"], fields["event"]
    except (ValueError, TypeError, KeyError):
        return line
    rest = (f"{name}={value}" for name, value in fields.items() if name not in _LEFT_OUT)
    return " ".join([time_of_day, level, event, *rest])


def uname() -> str:
    """Where this machine keeps `uname`."""
    for folder in ("/usr/bin", "/bin"):
        if os.access(f"{folder}/uname", os.X_OK):
            return f"{folder}/uname"
    raise Broken("this machine has no uname in /usr/bin or /bin")


def _wait_gone(process: RunningProcess, deadline_s: float) -> None:
    try:
        process.wait_exit(max(0.1, deadline_s - time.monotonic()))
    except TimeoutError:
        process.signal(signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
