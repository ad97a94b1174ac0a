"""Settings of a node: one frozen object, from option, environment, file or default, in that order.

Every setting is declared once, as a field of `config_settings.Settings`; docs/fleet-node.md is generated from it
(`python -m fleet_node.cli.reference`). Everything is checked at once, at the start, and whatever is wrong is said
at once, each with the setting's name and where its value came from.

Why a dataclass and not pydantic-settings: the node has 75 MiB in all (RSS). Measured beside what the daemon needs
anyway (50 MiB, 0.33 s): plain pydantic takes 7 MiB and 60 ms more, pydantic-settings 9 MiB and 70 ms, this module
0.1 MiB and 3 ms; and neither of them tells the line in the file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_node.config_file import ConfigFile, ConfigFileError
from fleet_node.config_settings import ENVIRONMENT_PREFIX, Declared, Settings, declared
from fleet_node.config_values import nearest_name

__all__ = ["ENVIRONMENT_PREFIX", "ConfigError", "Declared", "Loaded", "Problem", "Settings", "declared", "load"]

DEFAULT_PATH = Path("/etc/fleet-node/config.toml")
_NEARLY = 0.75


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Args:
        setting: its name in the file; empty when the file itself is wrong.
        source: where the value came from.
        text: what is wrong and what is wanted.
    """

    setting: str
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.setting} ({self.source}): {self.text}" if self.setting else self.text


class ConfigError(Exception):
    """The settings cannot be used: one line for each problem."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):  # the XDG specification: a path that is not absolute is to be ignored
        return Path(base) / "fleet-node"
    try:
        return Path.home() / ".local" / "state" / "fleet-node"
    except RuntimeError:  # a container that runs as a user without an entry
        remedy = "this user has no home folder: give --state-dir, or set FLEET_NODE_STATE_DIR"
        raise ConfigError(Problem("state_dir", "default", remedy)) from None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where each came from.

    Args:
        settings: checked.
        sources: by the setting's name in the file.
        file: the one that was read, if one was.
    """

    settings: Settings
    sources: Mapping[str, str]
    file: ConfigFile | None

    @property
    def path(self) -> Path | None:
        """The file that was read, if one was."""
        return self.file.path if self.file is not None else None

    def place_of(self, setting: str) -> str:
        """Where a setting of that dotted name stands in the file, such as "line 7 of ..."; empty without a file."""
        return self.file.place_of(setting) if self.file is not None else ""


def load(
    config: Path | None = None, *, environ: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
) -> Loaded:
    """Put the settings together.

    Args:
        config: file; by default `FLEET_NODE_CONFIG`, or `DEFAULT_PATH` when it exists.
        environ: the process's environment by default.
        options: what the command line gave, by field name, typed as TOML would; None means not given.

    Raises:
        ConfigError: with everything that is wrong.
    """
    environ = os.environ if environ is None else environ
    file = _open(config, environ)
    table = dict(file.table) if file is not None else {}
    tables, wrong = _tables(table, file)
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for each in declared():
        try:
            inside = tables.get(each.table, table)
            given = _given(each, environ, options or {}, inside, file)
            sources[each.name] = given[1] if given is not None else "default"
            if given is not None:
                found[each.field] = _checked(each, *given)
            elif each.field == "state_dir":
                found[each.field] = _default_state_dir(environ)
        except ConfigError as error:
            wrong += error.problems
    wrong += [*_unknown(table, file), *_misspelt(environ), *_outside_tables(tables["drivers"], file)]
    wrong += _unknown(tables["routes"], file, table="routes")
    settings = Settings(**found, driver_tables=tables["drivers"])
    wrong = wrong or list(_contradictions(settings, sources))
    if wrong:
        raise ConfigError(*wrong)
    return Loaded(settings, sources, file)


def host_name() -> str:
    """This host's name as a node's name; empty when nothing is left of it."""
    text = socket.gethostname().split(".")[0].lower().replace("_", "-")
    return "".join(char for char in text if char.isascii() and (char.isalnum() or char == "-"))[:63]


def _open(config: Path | None, environ: Mapping[str, str]) -> ConfigFile | None:
    named = config
    if named is None and f"{ENVIRONMENT_PREFIX}CONFIG" in environ:
        named = Path(environ[f"{ENVIRONMENT_PREFIX}CONFIG"])
    if named is None and not _is_there(DEFAULT_PATH):
        return None
    try:
        return ConfigFile(named or DEFAULT_PATH)
    except ConfigFileError as error:
        raise ConfigError(Problem("", str(named or DEFAULT_PATH), str(error))) from error


def _is_there(path: Path) -> bool:
    """Whether there is such a file. One behind a closed door counts: to go on without its pins would fail open."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _given(
    each: Declared,
    environ: Mapping[str, str],
    options: Mapping[str, Any],
    table: dict[str, Any],
    file: ConfigFile | None,
) -> tuple[Any, str] | None:
    """The value that counts and where it came from; takes it out of `table`."""
    keys = each.name.split(".")
    in_file = table.pop(keys[-1], None)
    if options.get(each.field) is not None:
        return options[each.field], f"option --{each.field.replace('_', '-')}"
    if each.environment in environ:
        source = f"environment variable {each.environment}"
        try:
            return each.kind.from_text(environ[each.environment]), source
        except ValueError:
            raise _wrong(each, environ[each.environment], source) from None
    if in_file is not None and file is not None:
        return in_file, file.place(keys)
    return None


def _checked(each: Declared, value: Any, source: str) -> Any:
    try:
        return each.kind.check(value)
    except (ValueError, TypeError):
        raise _wrong(each, value, source) from None


def _wrong(each: Declared, value: Any, source: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:79] + "…"
    return ConfigError(Problem(each.name, source, f"{shown} will not do; it must be {each.kind.wanted}"))


_TABLES = {"drivers": "enabled = [...]", "routes": "authority_required = true"}
"""Tables of the file, each with a setting that stands in it."""


def _tables(table: dict[str, Any], file: ConfigFile | None) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """The file's tables, taken out of `table`."""
    found: dict[str, dict[str, Any]] = {}
    wrong: list[Problem] = []
    for name, such_as in _TABLES.items():
        inside = table.pop(name, {})
        found[name] = dict(inside) if isinstance(inside, dict) else {}
        if not isinstance(inside, dict):
            remedy = f"it must be a table: write `[{name}]` and below it `{such_as}`"
            wrong.append(Problem(name, _place(file, name), remedy))
    return found, wrong


def _contradictions(settings: Settings, sources: Mapping[str, str]) -> Iterator[Problem]:
    """Settings that are good one by one and not together."""
    listen, reached_at = settings.probe_listen, settings.probe_endpoints
    if reached_at and not listen:
        remedy = "nothing listens there: set probe_listen, too, or leave this one out"
        yield Problem("probe_endpoints", sources["probe_endpoints"], remedy)
    if listen and not reached_at and _is_every_address(listen.rpartition(":")[0].strip("[]")):
        text = f"{listen!r} listens on every address, so other nodes cannot be told by it where this one is"
        remedy = 'set probe_endpoints, too: where they reach it, such as ["10.1.2.3:9470"]'
        yield Problem("probe_listen", sources["probe_listen"], f"{text}; {remedy}")


def _is_every_address(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False


def _outside_tables(drivers: Mapping[str, Any], file: ConfigFile | None) -> Iterator[Problem]:
    for name, settings in drivers.items():
        if not isinstance(settings, dict):
            remedy = f"settings of a driver stand in its own table, `[drivers.{name}]`{_suggest(name, ['enabled'])}"
            yield Problem(f"drivers.{name}", _place(file, "drivers", name), f"there is no such setting; {remedy}")


def _unknown(inside: Mapping[str, Any], file: ConfigFile | None, table: str = "") -> Iterator[Problem]:
    known = [each.name.rpartition(".")[2] for each in declared() if each.table == table]
    for name in inside:
        keys = [table, name] if table else [name]
        suggestion = _suggest(name, known if table else [*known, *_TABLES])
        yield Problem(".".join(keys), _place(file, *keys), f"there is no such setting{suggestion}")


def _misspelt(environ: Mapping[str, str]) -> Iterator[Problem]:
    # A variable that resembles no setting passes: Kubernetes sets FLEET_NODE_PORT and the like beside a service of
    # that name.
    known = {each.environment for each in declared()} | {f"{ENVIRONMENT_PREFIX}CONFIG"}
    for name in environ:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            near = nearest_name(name, known, 0.9)
            if near:
                yield Problem(name, f"environment variable {name}", f"there is no such setting; did you mean {near}?")


def _place(file: ConfigFile | None, *keys: str) -> str:
    return file.place(keys) if file is not None else ""


def _suggest(name: str, known: list[str]) -> str:
    near = nearest_name(name, known, _NEARLY)
    return f"; did you mean {near}?" if near else "; docs/fleet-node.md lists all of them"
