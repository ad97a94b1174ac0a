"""The node's config file: TOML, read once, and able to say on which line a setting stands."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 64 * 1024
"""A driver's settings are the largest part; a file beyond this is something else."""


class ConfigFileError(Exception):
    """The file cannot be used at all; the message names the line where there is one."""


class ConfigFile:
    """A parsed config file.

    Args:
        path: where it is.

    Raises:
        ConfigFileError: missing, not readable, open to changes by others, too large, or not TOML.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = _read(path)
        try:
            self.table: Mapping[str, Any] = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            last = len(self._text.splitlines())  # where the parser knows no line but the end
            problem = str(error).replace("at end of document", f"at line {last}, where it ends")
            raise ConfigFileError(f"{path} is not TOML: {problem}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
            line = _line_of(self._text, type(error))
            raise ConfigFileError(f"{path} is not TOML that can be read: {error} (at line {line})") from error

    def place_of(self, setting: str) -> str:
        """Where a setting of that dotted name stands, or the table that lacks it; see `place`."""
        keys: list[str] = []
        table: Any = self.table
        while setting and isinstance(table, Mapping):
            found = [key for key in table if setting == key or setting.startswith(f"{key}.")]
            if not found:
                break
            keys.append(max(found, key=len))  # a name may hold dots itself
            table, setting = table[keys[-1]], setting[len(keys[-1]) + 1 :]
        return self.place(keys) if keys else str(self.path)

    def place(self, keys: Sequence[str]) -> str:
        """Where the setting under these keys stands, such as "line 7 of /etc/fleet-node/config.toml"."""
        line = self._line(keys)
        return f"line {line} of {self.path}" if line else str(self.path)

    def _line(self, keys: Sequence[str]) -> int:
        """Line on which `keys` first exist, from 1; 0 when that cannot be told.

        TOML's parser keeps no positions. So each line that mentions the last key is asked: does the file, cut after
        the statement on this line, hold the setting?
        """
        lines = self._text.splitlines(keepends=True)
        for index, line in enumerate(lines):
            if keys[-1] in line and _holds(_first_whole(lines, index + 1), keys):
                return index + 1
        return 0


def _line_of(text: str, fault: type[Exception]) -> int:
    """The first line at whose end the parser gives up with `fault`, from 1; TOML's own errors tell theirs."""
    lines = text.splitlines(keepends=True)
    for end in range(1, len(lines)):
        try:
            tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        except fault:
            return end
    return len(lines)


def _first_whole(lines: list[str], count: int) -> Mapping[str, Any]:
    """The first `count` lines, and as many more as the statement on the last of them takes."""
    for end in range(count, len(lines) + 1):
        try:
            return tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
    return {}


def _holds(table: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(table, Mapping) or key not in table:
            return False
        table = table[key]
    return True


def _read(path: Path) -> str:
    try:
        # O_NONBLOCK: a FIFO at this path must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigFileError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigFileError(f"{path} is no plain file: name the config file itself")
        # Whoever can change this file can allow the exec driver to run anything as the node's user.
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigFileError(f"{path} belongs to another user: chown it to root or to the user that runs this")
        if stat.S_IMODE(found.st_mode) & 0o022:
            raise ConfigFileError(f"{path} can be changed by other users: run `chmod go-w {path}`")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigFileError(f"{path} is larger than {MAX_FILE_BYTES} bytes: name the config file itself")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(f"{path} is not UTF-8 (line {line})") from error
