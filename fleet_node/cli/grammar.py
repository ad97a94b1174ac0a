"""What every verb shares: exit codes, failures with a next step, options, and verbs that are loaded when used."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import click

from fleet.prose import wrapped, write_example

if TYPE_CHECKING:
    from fleet_node.config import Loaded


class ExitCode(IntEnum):
    """What a script can rely on."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


EXIT_CODE_MEANING: Mapping[ExitCode, str] = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "something failed here: the message says what and what to do",
    ExitCode.USAGE: "wrong usage or configuration, or the node is not enrolled: trying again changes nothing",
    ExitCode.REFUSED: "the server or an operator refused",
    ExitCode.UNREACHABLE: "no gateway was reached, or none could prove who it is",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}


class Failure(click.ClickException):
    """A verb ends badly.

    Args:
        message: what is wrong.
        code: how the process ends.
        hint: what to do next.
    """

    def __init__(self, message: str, *, code: ExitCode = ExitCode.FAILED, hint: str = "") -> None:
        super().__init__(message)
        vars(self)["exit_code"] = int(code)  # click declares it on the class, and reads it from the instance
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Write both sentences to standard error."""
        stream = file or sys.stderr
        for label, text in (("error:", self.message), (" next:", self.hint)):
            for line in text.splitlines():
                click.echo(f"{label} {folded(line, len(label) + 1, stream)}", file=stream)
                label = " " * len(label)


class Verb(click.Command):
    """A command with an example in its help.

    Args:
        example: command lines, as a person types them.
    """

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example and the exit codes."""
        write_example(formatter, self.example)
        _write_exit_codes(formatter)


class Lazy(NamedTuple):
    """Where a verb is defined ("module:attribute") and its line in the help, so that the help needs no import."""

    path: str
    summary: str


class Root(click.Group):
    """`fleet-node` itself.

    Args:
        verbs: by name.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, without loading anything."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the verb."""
        found = self.verbs.get(cmd_name)
        if found is None:
            return None
        module, attribute = found.path.split(":")
        loaded = getattr(importlib.import_module(module), attribute)
        return loaded if isinstance(loaded, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of verbs, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in self.verbs.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """An example and the exit codes."""
        write_example(formatter, "fleet-node enroll --token-file join-token.txt\nfleet-node run")
        _write_exit_codes(formatter)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and end the process with a documented code; Ctrl-C gives no traceback."""
        extra |= {"windows_expand_args": windows_expand_args}
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.Abort:
            _leave(ExitCode.INTERRUPTED)
        except click.ClickException as failure:
            failure.show()
            _leave(failure.exit_code)
        _leave(code if isinstance(code, int) else ExitCode.DONE)


Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def node_options(verb: Decorated) -> Decorated:
    """`--config` and `--state-dir`: which node is meant."""
    state_dir = click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        help="Folder of this node's keys, journal and spool [default: see docs/fleet-node.md].",
    )
    config = click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="Config file [default: $FLEET_NODE_CONFIG, or /etc/fleet-node/config.toml if it is there].",
    )
    return config(state_dir(verb))


json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document for programs.")


def settings_from(config: Path | None, state_dir: Path | None, **options: Any) -> Loaded:
    """The node's settings.

    Args:
        config: `--config`.
        state_dir: `--state-dir`; relative to the working folder.
        options: further fields that the command line gave.

    Raises:
        Failure: a setting is wrong.
    """
    from fleet_node.config import ConfigError, load

    if state_dir is not None:
        named = os.path.expanduser(state_dir)
        options["state_dir"] = named if named.startswith("~") else os.path.abspath(named)  # no such user: refused
    try:
        return load(config, options=options)
    except ConfigError as error:
        raise Failure(str(error), code=ExitCode.USAGE) from error


def printable(text: str) -> str:
    """Text that may come from a server made harmless to a terminal: control characters become visible."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def folded(text: str, indent: int, stream: IO[Any]) -> str:
    """Text made printable, and folded to the terminal when `stream` is one.

    Args:
        text: may come from a server.
        indent: column at which it begins, and further lines too.
        stream: where it will go.
    """
    width = shutil.get_terminal_size().columns if stream.isatty() else None
    return wrapped(printable(text), width, indent=indent)


def again(verb: str, config: Path | None, state_dir: Path | None) -> str:
    """The command line of another verb for the same node, as a person types it."""
    words = ["fleet-node", verb]
    for option, path in (("--config", config), ("--state-dir", state_dir)):
        words += [option, str(path)] if path is not None else []
    return f"`{shlex.join(words)}`"


def _write_exit_codes(formatter: click.HelpFormatter) -> None:
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(int(code)), meaning) for code, meaning in EXIT_CODE_MEANING.items()])


def _leave(code: int) -> NoReturn:
    sys.exit(int(code))
