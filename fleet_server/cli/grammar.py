"""The grammar that every verb shares: options at any position, a help with an example, exit codes, and groups loaded
when needed."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import click

from fleet.prose import write_example
from fleet_server.cli.failures import EXIT_CODE_MEANING, ExitCode
from fleet_server.cli.invocation import Invocation

_EVERY_VERB = "Options of every verb"


class Verb(click.Command):
    """A command with an example in its help.

    Args:
        example: one or more command lines, as a person types them.
    """

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own options, and those of every verb."""
        return [*super().get_params(ctx), *_EVERY_VERB_OPTIONS]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options first, then those of every verb."""
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example and the exit codes."""
        write_example(formatter, self.example)
        _write_exit_codes(formatter)


class Listing(click.Group):
    """A group whose help lists its verbs as they are defined, each with its first sentence whole."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the file."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of verbs."""
        verbs = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(limit=1000)) for name, verb in verbs if verb])


class Noun(Listing):
    """A group of verbs about one thing."""

    command_class = Verb

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own options, and those of every verb."""
        return [*super().get_params(ctx), *_EVERY_VERB_OPTIONS]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options, then the verbs."""
        _write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


class Lazy(NamedTuple):
    """Where a noun or verb is defined ("module:attribute") and its line in the help, so that the help needs no
    import."""

    path: str
    summary: str


class Root(Noun):
    """`fleetctl` itself: loads a noun's module when the noun is used, and ends the process with the documented
    codes.

    Args:
        nouns: by name.
        example: the first command lines that a person types.
    """

    def __init__(self, *args: Any, nouns: Mapping[str, Lazy], example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nouns = nouns
        self.example = example

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, without loading anything."""
        return list(self.nouns)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the noun."""
        found = self.nouns.get(cmd_name)
        if found is None:
            return None
        module, attribute = found.path.split(":")
        loaded = getattr(importlib.import_module(module), attribute)
        return loaded if isinstance(loaded, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest noun when there is none of that name."""
        if args[0] not in self.nouns and not args[0].startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(args[0], self.nouns, n=1)
            ctx.fail(f"no such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of nouns, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in self.nouns.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The first steps and the exit codes."""
        write_example(formatter, self.example)
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
        """Run and end the process; Ctrl-C ends with 130 and no traceback."""
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


class Duration(click.ParamType[int]):
    """Seconds, or a number with s, m, h or d: "90", "5m", "24h"."""

    name = "duration"
    FORM = re.compile(r"([0-9]{1,9})([smhd]?)")
    SUCH_AS = "90, 90s, 5m, 24h or 7d"
    _UNITS: Mapping[str, int] = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole seconds above 0."""
        if isinstance(value, int):
            return value
        found = self.FORM.fullmatch(value)
        if not found or not int(found[1]):
            self.fail(f"{value!r} is not a duration: write {self.SUCH_AS}", param, ctx)
        seconds = int(found[1]) * self._UNITS[found[2]]
        if seconds > 0xFFFFFFFF:
            self.fail(f"{value!r} is too long", param, ctx)
        return seconds


def key_value(text: str, *, option: str) -> tuple[str, str]:
    """Split "key=value".

    Raises:
        click.BadParameter: there is no key.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{text!r} is not key=value", param_hint=option)
    return key, value


def typed_arguments(pairs: Sequence[str]) -> dict[str, object]:
    """Arguments of an action: `key=text` is a string, `key:=json` any JSON value.

    Raises:
        click.BadParameter: not of that form, bad JSON, or a key given twice.
    """
    arguments: dict[str, object] = {}
    for pair in pairs:
        key, text = key_value(pair, option="--arg")
        value: object = text
        if key.endswith(":"):
            key = key[:-1]
            try:
                value = json.loads(text)
            except ValueError as error:
                raise click.BadParameter(
                    f"{pair!r}: the value after := is not JSON ({error})", param_hint="--arg"
                ) from error
        if not key or key in arguments:
            raise click.BadParameter(f"{pair!r}: the key is empty or given twice", param_hint="--arg")
        arguments[key] = value
    return arguments


def _take_output(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    invocation = ctx.find_root().ensure_object(Invocation)
    if value is not None:
        invocation.output = value


def _take_context(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    invocation = ctx.find_root().ensure_object(Invocation)
    if value is not None:
        invocation.context_name = value


def _complete_context(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from fleet_server.cli import complete

    return complete.context(ctx, param, incomplete)


_EVERY_VERB_OPTIONS: tuple[click.Option, ...] = (
    click.Option(
        ["--output", "-o"],
        type=click.Choice(["table", "json"]),
        expose_value=False,
        callback=_take_output,
        help="table for people (default), json for programs; watches and exports write JSON Lines.",
    ),
    click.Option(
        ["--context"],
        metavar="NAME",
        expose_value=False,
        callback=_take_context,
        shell_complete=_complete_context,
        help="Context of the profile to use instead of the current one.",
    ),
)


def _write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    own: list[tuple[str, str]] = []
    shared: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and not isinstance(param, click.Argument):
            (shared if param in _EVERY_VERB_OPTIONS else own).append(record)
    with formatter.section("Options"):
        formatter.write_dl(own)
    with formatter.section(_EVERY_VERB):
        formatter.write_dl(shared)


def _write_exit_codes(formatter: click.HelpFormatter) -> None:
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(int(code)), meaning) for code, meaning in EXIT_CODE_MEANING.items()])


def _leave(code: int) -> NoReturn:
    sys.exit(int(code))
