"""Driver `exec`: runs the programs that this node's config allows, by alias, never through a shell.

What may run, with which arguments and in which environment is settled in `exec_settings`; how it is started,
limited and ended in `guarded_program` and `guard`. Programs run as the node's own user; for another user run
a second node as that user.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fleet_node.drivers.api import Action, Invocation, Outcome, OutcomeState, Sample
from fleet_node.drivers.exec_settings import MAX_TIMEOUT_S, NotAllowed, Program, read_exec_settings
from fleet_node.drivers.guarded_program import Ended, Launch, Stopped, run_guarded
from fleet_node.drivers.json_text import text_within

_RUN: Final = "exec.run"
_ENVELOPE_BYTES: Final = 1024
"""Room in an outcome for everything but the two texts."""


class ExecDriver:
    """Allow-listed programs.

    Args:
        settings: the table `[drivers.exec]`.

    Raises:
        DriverConfigError: names the setting and what to do.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.name = "exec"
        self.version = "1.0"
        self._settings = read_exec_settings(settings)

    def actions(self) -> Sequence[Action]:
        """`exec.run` alone; its schema names the programs."""
        programs = self._settings.programs.values()
        return [
            Action(
                name=_RUN,
                description="Runs a program that this node's config allows and returns what it printed.",
                arguments_schema=_arguments_schema(list(programs)),
                protected=self._settings.protected,
                timeout_s=max(program.max_timeout_s for program in programs),
                max_output_bytes=(self._settings.max_stdout_bytes + self._settings.max_stderr_bytes + _ENVELOPE_BYTES),
            )
        ]

    async def run(self, invocation: Invocation) -> Outcome:
        """Run one program.

        FAILED reasons: NOT_ALLOWED, SPAWN_FAILED, EXIT_STATUS, SIGNAL, TIMEOUT, GUARD_LOST. CANCELLED:
        STOPPED.
        """
        arguments = invocation.arguments
        program = self._settings.programs[arguments["program"]]
        args = tuple(arguments.get("args", ()))
        stdin: str | None = arguments.get("stdin")
        try:
            program.check_args(args)
            program.check_stdin(stdin)
            timeout_s = program.limit_s(arguments.get("timeout_s"), invocation.timeout_s)
        except NotAllowed as refused:
            return Outcome(OutcomeState.FAILED, {"program": program.alias}, "NOT_ALLOWED", str(refused))
        if invocation.stop.is_set():
            return Outcome(OutcomeState.CANCELLED, {"program": program.alias}, "STOPPED", "stopped before it started")
        launch = Launch(
            path=program.path,
            args=(*program.args, *args),
            env=program.env,
            cwd=program.cwd,
            stdin=None if stdin is None else stdin.encode(),
            grace_s=program.grace_s,
            max_stdout_bytes=self._settings.max_stdout_bytes,
            max_stderr_bytes=self._settings.max_stderr_bytes,
        )
        try:
            ended = await run_guarded(launch, stop=invocation.stop, timeout_s=timeout_s)
        except OSError as error:
            return _spawn_failed(program, error.errno or 0)
        return self._outcome(program, ended, timeout_s)

    def sample(self) -> Sequence[Sample]:
        """No telemetry."""
        return ()

    async def close(self) -> None:
        """Nothing to let go of: each run ends what it started."""

    def _outcome(self, program: Program, ended: Ended, timeout_s: float) -> Outcome:
        if ended.spawn_errno is not None:
            return _spawn_failed(program, ended.spawn_errno)
        stdout, stdout_cut = text_within(ended.stdout.kept, self._settings.max_stdout_bytes)
        stderr, stderr_cut = text_within(ended.stderr.kept, self._settings.max_stderr_bytes)
        stdout_cut |= ended.stdout.total_bytes > len(ended.stdout.kept)
        stderr_cut |= ended.stderr.total_bytes > len(ended.stderr.kept)
        output = {
            "program": program.alias,
            "exit_code": ended.exit_code,
            "signal": None if ended.signal is None else _signal_name(ended.signal),
            "stdout": stdout,
            "stderr": stderr,
            "stdout_bytes": ended.stdout.total_bytes,
            "stderr_bytes": ended.stderr.total_bytes,
            "stdout_truncated": stdout_cut,
            "stderr_truncated": stderr_cut,
        }
        state, reason, error = _judge(program, ended, timeout_s)
        return Outcome(state, output, reason, error, truncated=stdout_cut or stderr_cut)


def _judge(program: Program, ended: Ended, timeout_s: float) -> tuple[OutcomeState, str, str]:
    """State, reason and sentence of a program that was started."""
    left = "" if ended.swept else " Some of its processes could not be ended; look at the machine."
    if ended.stopped is Stopped.ASKED:
        return OutcomeState.CANCELLED, "STOPPED", f"{program.alias} was stopped while it ran.{left}"
    if ended.stopped is Stopped.TIMEOUT:
        text = f"{program.alias} ran longer than {timeout_s:g} s and was stopped.{left}"
        return OutcomeState.FAILED, "TIMEOUT", text
    if ended.signal is not None:
        return OutcomeState.FAILED, "SIGNAL", f"{program.alias} was ended by {_signal_name(ended.signal)}.{left}"
    if ended.exit_code is None:
        text = f"the guard of {program.alias} was killed and the program with it; how far it came is unknown."
        return OutcomeState.FAILED, "GUARD_LOST", text
    if ended.exit_code:
        return OutcomeState.FAILED, "EXIT_STATUS", f"{program.alias} exited with {ended.exit_code}.{left}"
    return OutcomeState.SUCCEEDED, "", left.strip()


def _spawn_failed(program: Program, error_number: int) -> Outcome:
    why = os.strerror(error_number) if error_number else "unknown error"
    text = f"{program.alias} could not be started: {why}. Check its path and cwd in the node's config."
    return Outcome(OutcomeState.FAILED, {"program": program.alias}, "SPAWN_FAILED", text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


def _arguments_schema(programs: Sequence[Program]) -> Mapping[str, Any]:
    """The widest of what the programs take; what a single one takes is checked at the node, which alone knows
    it.
    """
    properties: dict[str, Any] = {
        "program": {"enum": [program.alias for program in programs], "description": "Alias on the node."},
        "timeout_s": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": min(MAX_TIMEOUT_S, max(program.max_timeout_s for program in programs)),
            "description": "Time limit in seconds.",
        },
    }
    max_args = max(program.max_args for program in programs)
    if max_args:
        properties["args"] = {
            "type": "array",
            "maxItems": max_args,
            "items": {"type": "string", "maxLength": max(program.max_arg_bytes for program in programs)},
            "description": "Arguments after those of the config; never seen by a shell.",
        }
    max_stdin_bytes = max(program.max_stdin_bytes for program in programs)
    if max_stdin_bytes:
        properties["stdin"] = {
            "type": "string",
            "maxLength": max_stdin_bytes,
            "description": "What the program reads from standard input.",
        }
    return {
        "type": "object",
        "properties": properties,
        "required": ["program"],
        "additionalProperties": False,
    }
