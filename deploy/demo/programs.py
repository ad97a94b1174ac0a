"""What both demos stand on: the installed programs as processes of their own, under a state folder, ended by their id.

Waiting is for a condition, bounded, and gives up at once when a process that should live has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.demo.stage import Broken
from tests.fakes.process import Processes, RunningProcess

WAIT_S = 60.0
"""Generous: it only ends a demo that is broken, on a machine however busy."""
_LOOK_AGAIN_S = 0.05
_CALL_S = 90.0
_END_S = 8.0
_TAIL_LINES = 12
_LEFT_OUT = frozenset({"timestamp", "level", "event", "logger", "component", "replica_id", "node_id"})


class Programs:
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
        self.profile = state / "fleetctl.toml"
        self.processes = Processes(self.logs)
        self.nodes: dict[str, RunningProcess] = {}
        self._bin = Path(sys.executable).parent

    # -- places -----------------------------------------------------------------------------------------------------
    @property
    def first_config(self) -> Path:
        """The config file of the server that makes the installation."""
        raise NotImplementedError

    @property
    def owner_token_file(self) -> Path:
        """The first owner's token, 0600."""
        return self.state / "owner.token"

    def node_config(self, node: str) -> Path:
        """A node's config file."""
        return self.state / f"{node}.toml"

    def run_log(self, node: str) -> Path:
        """Where the simulated driver of a node writes what it runs."""
        return self.logs / f"{node}.runs.jsonl"

    def shown(self, path: Path) -> str:
        """A path as a person types it from the repository."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    # -- programs ---------------------------------------------------------------------------------------------------
    def init_arguments(self) -> list[str]:
        """Arguments of `fleet-server` that make the installation."""
        token = self.shown(self.owner_token_file)
        return ["init", "--config", self.shown(self.first_config), "--owner-token-file", token]

    def init_server(self) -> list[str]:
        """Make the installation; what `fleet-server init` printed."""
        return self._program("fleet-server", *self.init_arguments()).stdout.splitlines()

    def start_enrolling(self, node: str, token_file: Path) -> RunningProcess:
        """Start `fleet-node enroll`; the join token goes in by its standard input."""
        arguments = ["enroll", "--config", self.shown(self.node_config(node)), "--token-file", "-"]
        with token_file.open("rb") as token:
            return self._start("fleet-node", *arguments, name=f"{node}.enroll", stdin=token)

    def start_node(self, node: str, env: Mapping[str, str] | None = None) -> RunningProcess:
        """Start a node's daemon; returns before its stream is up.

        Args:
            node: its name.
            env: settings on top of its config file.
        """
        config = self.shown(self.node_config(node))
        self.nodes[node] = self._start("fleet-node", "run", "--config", config, name=node, env=env)
        return self.nodes[node]

    def fleetctl(self, *arguments: str, expect: int = 0, profile: Path | None = None) -> Any:
        """Run fleetctl; the JSON that it printed, of JSON Lines the last, or None when it printed nothing.

        Args:
            arguments: of fleetctl.
            expect: exit code.
            profile: of another person than the first owner.

        Raises:
            Broken: it ended with another code than `expect`.
        """
        env = {"FLEETCTL_PROFILE": str(profile)} if profile is not None else {}
        text = self._program("fleetctl", *arguments, "--output", "json", expect=expect, env=env).stdout.strip()
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
            Broken: not in time, or a process that should live has ended.
        """
        deadline_s = time.monotonic() + timeout_s
        self._waiting(what)
        while not condition():
            for process in self.wanted():
                if process.exit_code is not None:
                    raise Broken(f"{process.name} ended with code {process.exit_code} while waiting for: {what}")
            if time.monotonic() > deadline_s:
                raise Broken(f"not within {timeout_s:g} s: {what}")
            time.sleep(_LOOK_AGAIN_S)
        self._waiting("")

    def wanted(self) -> list[RunningProcess]:
        """Processes that have to live while something is waited for."""
        return list(self.nodes.values())

    def tails(self) -> list[str]:
        """The last lines of every process that lives or ended badly, as a person reads them."""
        wanted = self.wanted()
        lines: list[str] = []
        for each in self.processes.started:
            if each in wanted or each.exit_code != 0:
                lines += ["", f"{each.name} (process {each.pid}, exit code {each.exit_code}) said last:"]
                lines += [f"  {readable(line)}" for line in each.lines[-_TAIL_LINES:]]
        return lines

    def end(self) -> None:
        """End everything that was started: nodes first, each in order and within bounds."""
        try:
            end_in_order(self.nodes.values())
        finally:
            self.processes.end_all()

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


def end_in_order(processes: Iterable[RunningProcess]) -> None:
    """Ask all of them to end; who has not after a while is killed."""
    group = list(processes)
    for process in group:
        process.terminate()
    deadline_s = time.monotonic() + _END_S
    for process in group:
        try:
            process.wait_exit(max(0.1, deadline_s - time.monotonic()))
        except TimeoutError:
            process.signal(signal.SIGKILL)


def readable(line: str) -> str:
    """A JSON log line as time, level, event and fields; anything else as it is."""
    try:
        fields = json.loads(line)
        time_of_day, level, event = fields["timestamp"][11:23], fields["level"], fields["event"]
    except (ValueError, TypeError, KeyError):
        return line
    rest = (f"{name}={value}" for name, value in fields.items() if name not in _LEFT_OUT)
    return " ".join([time_of_day, level, event, *rest])


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
