"""The programs that a node lets operators run, from its own config file. The server cannot widen them.

    [drivers.exec.programs.service-status]
    path = "/usr/bin/systemctl"       # absolute; never looked up in PATH
    args = ["status", "--no-pager"]   # always first
    max_args = 1                      # how many the operator may add; 0 unless set
    allowed_args = ["nginx", "chronyd"]

An argument from an operator is data. One that begins with "-" could be an option instead, and many programs
have an option that runs another program, so options are refused unless the config allows them or lists that
very argument.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fleet_node.drivers.api import DriverConfigError
from fleet_node.drivers.settings import SettingsTable

MAX_PROGRAMS: Final = 64
MAX_ARGS: Final = 64
MAX_ARG_BYTES: Final = 8192
MAX_STDIN_BYTES: Final = 48 * 1024
MAX_TIMEOUT_S: Final = 24 * 3600.0

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class NotAllowed(Exception):
    """The node's config does not allow what was asked for; the text never repeats an argument."""


@dataclass(frozen=True, slots=True)
class Program:
    """One allowed program.

    Args:
        alias: what operators call it.
        path: absolute path of the executable.
        args: arguments that always come first.
        max_args: how many more an operator may give.
        max_arg_bytes: length of each of those in UTF-8.
        allowed_args: if not empty, each of those must be one of these.
        allow_options: whether one of those may begin with "-".
        max_stdin_bytes: how much an operator may send to its standard input; 0: none.
        env: its whole environment.
        cwd: working directory.
        timeout_s: time limit when the operator names none.
        max_timeout_s: longest limit that an operator may name.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    alias: str
    path: str
    args: tuple[str, ...]
    max_args: int
    max_arg_bytes: int
    allowed_args: tuple[str, ...]
    allow_options: bool
    max_stdin_bytes: int
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    timeout_s: float
    max_timeout_s: float
    grace_s: float

    def check_args(self, args: tuple[str, ...]) -> None:
        """Refuse arguments from an operator that the config does not allow.

        Raises:
            NotAllowed: says which argument, by its number, and why.
        """
        if len(args) > self.max_args:
            raise NotAllowed(f"{self.alias} takes at most {self.max_args} arguments; {len(args)} were given")
        for number, arg in enumerate(args, start=1):
            if "\0" in arg:
                raise NotAllowed(f"argument {number} holds a NUL character, which no program can receive")
            if len(arg.encode()) > self.max_arg_bytes:
                raise NotAllowed(f"argument {number} is longer than {self.max_arg_bytes} bytes")
            if self.allowed_args:
                if arg not in self.allowed_args:
                    raise NotAllowed(f"argument {number} is not among the allowed arguments of {self.alias}")
            elif arg.startswith("-") and not self.allow_options:
                raise NotAllowed(f'argument {number} begins with "-" and {self.alias} takes no options')

    def check_stdin(self, stdin: str | None) -> None:
        """Refuse standard input that the config does not allow.

        Raises:
            NotAllowed: says the limit.
        """
        if stdin is not None and len(stdin.encode()) > self.max_stdin_bytes:
            raise NotAllowed(f"{self.alias} takes at most {self.max_stdin_bytes} bytes of standard input")

    def limit_s(self, asked_s: float | None, invocation_s: float) -> float:
        """Seconds that a run gets: what the operator asked for or the default, within both limits.

        Raises:
            NotAllowed: more was asked for than the config allows.
        """
        if asked_s is not None and asked_s > self.max_timeout_s:
            raise NotAllowed(f"{self.alias} may run for at most {self.max_timeout_s:g} s")
        return min(self.timeout_s if asked_s is None else asked_s, invocation_s)


@dataclass(frozen=True, slots=True)
class ExecSettings:
    """The whole table `[drivers.exec]`.

    Args:
        programs: by alias.
        protected: every run needs a person's signed intent.
        max_stdout_bytes: how much standard output to report, as JSON text.
        max_stderr_bytes: the same for standard error.
    """

    programs: Mapping[str, Program]
    protected: bool
    max_stdout_bytes: int
    max_stderr_bytes: int


def read_exec_settings(settings: Mapping[str, Any]) -> ExecSettings:
    """Check the table `[drivers.exec]`.

    Raises:
        DriverConfigError: names the setting and what to do.
    """
    if not hasattr(os, "waitid"):  # the guard must see an end without reaping; Python has it on macOS from 3.13 on
        remedy = "Take exec out of the enabled drivers, or run the node on Linux."
        raise DriverConfigError("drivers.exec", "this system lacks waitid", remedy)
    table = SettingsTable(settings, "drivers.exec")
    entries = table.table("programs", max_items=MAX_PROGRAMS)
    if not entries:
        remedy = "Add a table [drivers.exec.programs.NAME] with a path, or take exec out of the enabled drivers."
        raise table.wrong("programs", "allows no program", remedy)
    programs = {alias: _read_program(alias, entry, table) for alias, entry in entries.items()}
    read = ExecSettings(
        programs=programs,
        protected=table.flag("protected", False),
        max_stdout_bytes=table.integer("max_stdout_bytes", 64 * 1024, minimum=256, maximum=160 * 1024),
        max_stderr_bytes=table.integer("max_stderr_bytes", 16 * 1024, minimum=256, maximum=64 * 1024),
    )
    table.finish()
    return read


def _read_program(alias: str, entry: object, parent: SettingsTable) -> Program:
    key = f"programs.{alias}"
    if not _ALIAS.fullmatch(alias):
        raise parent.wrong(key, f"is no good name; a name matches {_ALIAS.pattern}", "Rename the table.")
    if not isinstance(entry, Mapping):
        raise parent.wrong(key, "is not a table", f"Write [drivers.exec.{key}] and a path below it.")
    table = SettingsTable(entry, f"drivers.exec.{key}")
    max_timeout_s = table.number("max_timeout_s", 3600.0, minimum=0.1, maximum=MAX_TIMEOUT_S)
    program = Program(
        alias=alias,
        path=_read_path(table),
        args=table.texts("args", max_items=MAX_ARGS, max_chars=MAX_ARG_BYTES),
        max_args=table.integer("max_args", 0, minimum=0, maximum=MAX_ARGS),
        max_arg_bytes=table.integer("max_arg_bytes", 1024, minimum=1, maximum=MAX_ARG_BYTES),
        allowed_args=table.texts("allowed_args", max_items=1000, max_chars=MAX_ARG_BYTES),
        allow_options=table.flag("allow_options", False),
        max_stdin_bytes=table.integer("max_stdin_bytes", 0, minimum=0, maximum=MAX_STDIN_BYTES),
        env=_read_env(table),
        cwd=_read_cwd(table),
        timeout_s=table.number("timeout_s", min(60.0, max_timeout_s), minimum=0.1, maximum=max_timeout_s),
        max_timeout_s=max_timeout_s,
        grace_s=table.number("grace_s", 5.0, minimum=0.0, maximum=60.0),
    )
    table.finish()
    if program.allowed_args and not program.max_args:
        raise table.wrong("max_args", "is 0 while allowed_args lists some", "Set max_args to 1 or more.")
    return program


def _read_path(table: SettingsTable) -> str:
    path = table.text("path")
    if not os.path.isabs(path):
        raise table.wrong("path", "is not absolute", "Write the whole path; PATH is never searched.")
    try:
        found = os.stat(path)
    except OSError as error:
        raise table.wrong("path", f"cannot be read ({error.strerror})", "Install the program there.") from None
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.X_OK):
        raise table.wrong("path", "is not an executable file", "Name the program itself.")
    if found.st_mode & stat.S_IWOTH:  # whoever can write it decides what operators run
        raise table.wrong("path", "can be changed by every user of this machine", "Run chmod o-w on it.")
    return path


def _read_cwd(table: SettingsTable) -> str:
    cwd = table.text("cwd", "/")
    if not os.path.isabs(cwd) or not os.path.isdir(cwd):
        raise table.wrong("cwd", "is not the absolute path of a directory")
    return cwd


def _read_env(table: SettingsTable) -> Mapping[str, str]:
    """The whole environment: nothing of the node's own is passed on, since that may hold its secrets."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    for name, value in table.table("env", max_items=64).items():
        if not _ENV_NAME.fullmatch(name) or not isinstance(value, str) or "\0" in value or len(value) > 4096:
            raise table.wrong(f"env.{name}", "is not a variable with a string of at most 4096 characters")
        env[name] = value
    return env
