"""Settings from file, environment and flags, and where each came from.

Flags win over the environment, the environment over the file, the file over defaults. Everything that is wrong is
said at once, each with the setting's name and its source: the line for a file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, InitSettingsSource, TomlConfigSettingsSource

from fleet_server.config.settings import ENV_PREFIX, Settings

FILE_VARIABLE = "FLEET_CONFIG"
MASK = "[secret]"
_ASSIGNMENT = re.compile(
    r"""^\s*(?:"(?P<quoted>[^"]+)"|(?P<bare>[A-Za-z0-9_-]+))\s*[=.]"""  # a key, or the first part of a dotted one
    r"""|^\s*\[+\s*(?P<table>[^\]\s]+)"""
)


class ConfigError(Exception):
    """The settings cannot be used. `problems` holds one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings and, by name, where each came from: ``flag``, ``environment FLEET_…``, ``<file> line N`` or
    ``default``."""

    settings: Settings
    sources: Mapping[str, str]

    def shown(self, effective: Mapping[str, str] = MappingProxyType({})) -> list[tuple[str, str, str]]:
        """Name, value and source of every setting, secrets masked.

        Args:
            effective: what the server works with, by name, where that is not just what was given; without credentials.
        """
        rows = []
        for name in Settings.model_fields:
            given, source = getattr(self.settings, name), self.sources[name]
            value = effective.get(name, _show(given))
            if name in effective and not given:
                source = "derived"
            elif isinstance(given, tuple) and value != _show(given):
                source = f"{source} and derived"
            rows.append((name, value, source))
        return rows


def load(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, str] | None = None,
) -> LoadedSettings:
    """Read, validate and freeze the settings.

    Args:
        file: TOML file; by default the one that `FLEET_CONFIG` names, if any.
        environment: variables `FLEET_<SETTING>`.
        flags: values given on the command line, by name of the setting.

    Raises:
        ConfigError: with every problem that there is.
    """
    if file is None and environment.get(FILE_VARIABLE):
        file = Path(environment[FILE_VARIABLE])
    values: dict[str, Any] = {}
    sources: dict[str, str] = dict.fromkeys(Settings.model_fields, "default")
    problems = [f"environment: there is no setting {name!r}{_suggest(name)}" for name in _nearly_settings(environment)]
    if file is not None:
        _take(_from_file(file), _file_sources(file), values, sources)
    _take(*_from_environment(environment), values, sources)
    given = dict(flags or {})
    _take(InitSettingsSource(Settings, given)(), {name: f"flag {name}" for name in given}, values, sources)

    for name in [name for name in values if name not in Settings.model_fields]:
        del values[name]
        problems.append(f"{sources[name]}: there is no setting {name!r}{_suggest(name)}")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            problems += _explain(problem, sources).splitlines()
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return LoadedSettings(settings, sources)


def _take(found: Mapping[str, Any], where: Mapping[str, str], values: dict[str, Any], sources: dict[str, str]) -> None:
    for name, value in found.items():
        values[name] = value
        sources[name] = where[name]


def _from_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            tomllib.load(opened)
        return TomlConfigSettingsSource(Settings, file)()
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read ({error.strerror}): name another with --config"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file} is not TOML: {error}"]) from error


def _file_sources(file: Path) -> dict[str, str]:
    lines: dict[str, str] = {}
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        match = _ASSIGNMENT.match(line)
        if match:
            name = match["quoted"] or match["bare"] or match["table"].partition(".")[0]
            lines.setdefault(name, f"{file} line {number}")
    return _WithDefault(lines, str(file))


class _WithDefault(dict[str, str]):
    """Where a name stands in a file; for a name written in a way that `_ASSIGNMENT` does not see, the file."""

    def __init__(self, lines: Mapping[str, str], file: str) -> None:
        super().__init__(lines)
        self._file = file

    def __missing__(self, name: str) -> str:
        return self._file


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in environment.items() if value}
    found = {name: value for name, value in source().items() if name in Settings.model_fields}
    return found, {name: f"environment {ENV_PREFIX}{name.upper()}" for name in found}


def _nearly_settings(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like a misspelt setting. Others of our prefix may be another program's."""
    names = [name.upper() for name in Settings.model_fields]
    known = {ENV_PREFIX + name for name in names} | {FILE_VARIABLE}
    ours = (name for name in environment if name.startswith(ENV_PREFIX) and name not in known)
    return [name for name in ours if difflib.get_close_matches(name.removeprefix(ENV_PREFIX), names, n=1, cutoff=0.85)]


def _explain(problem: Any, sources: Mapping[str, str]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name, *inside = problem["loc"]
    entry = f" (entry {inside[0] + 1})" if inside and isinstance(inside[0], int) else ""
    source = sources.get(name, "default")
    where = source if source == f"flag {name}" else f"{source}: {name}"
    return f"{where}{entry}: {message}"


def _suggest(name: str) -> str:
    plain = name.lower().replace("-", "_").removeprefix(ENV_PREFIX.lower())
    close = difflib.get_close_matches(plain, Settings.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else ": `fleet-server config` lists them all"


def _show(value: object) -> str:
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
