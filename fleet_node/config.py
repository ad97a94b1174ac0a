"""Settings of a node: one frozen object, from option, environment, file or default, in that order.

Every setting is declared once, as a field of `Settings`; docs/fleet-node.md is generated from it
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
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from fleet.logs import LEVELS
from fleet_node import config_values as values
from fleet_node.config_file import ConfigFile, ConfigFileError
from fleet_node.config_values import Kind, nearest_name

DEFAULT_PATH = Path("/etc/fleet-node/config.toml")
ENVIRONMENT_PREFIX = "FLEET_NODE_"
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


def _about(kind: Kind[Any], help: str, *, shown: str = "", name: str = "") -> Mapping[str, Any]:
    """What is known of a setting.

    Args:
        kind: what it may hold.
        help: for the reference: what it does, without a full stop.
        shown: how the reference shows the default; by default as it is.
        name: dotted name in the file when it is not the field's.
    """
    return {"kind": kind, "help": help, "shown": shown, "name": name}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a node can be told. Made by `load`."""

    state_dir: Path = field(
        default=Path(),
        metadata=_about(
            values.folder(),
            "folder for keys, membership, journal and spool; made with mode 0700",
            shown="`$XDG_STATE_HOME/fleet-node`, or `~/.local/state/fleet-node`",
        ),
    )
    name: str = field(
        default="",
        metadata=_about(
            values.node_name(),
            "name to ask for when enrolling; an operator approves it",
            shown="from the host's name",
        ),
    )
    labels: Mapping[str, str] = field(
        default_factory=dict,
        metadata=_about(values.labels(), "labels that the node reports (`reported.*`); they select nothing"),
    )
    endpoints: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            values.endpoints(),
            "gateways to use instead of those in the signed trust bundle",
            shown="the bundle's",
        ),
    )
    mtls_endpoints: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            values.endpoints(), "gateways' mTLS listeners, used once a certificate came over the other endpoints"
        ),
    )
    authority_key: bytes = field(
        default=b"",
        metadata=_about(
            values.public_key(),
            "the only cluster authority to be a node of: its raw key in hex, as `fleet-server init` shows it",
        ),
    )
    fingerprint: bytes = field(
        default=b"",
        metadata=_about(
            values.fingerprint(), "the fingerprint that this node's keys must have; cloned or swapped keys are refused"
        ),
    )
    protected: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            values.action_globs(),
            "actions that need people's signed intents here, besides those that a driver or the policy marks",
        ),
    )
    poll_interval_s: float | None = field(
        default=None,
        metadata=_about(
            values.number(1, 3600, "5"),
            "seconds between two questions whether the enrollment is decided",
            shown="the server's",
        ),
    )
    poll_timeout_s: float = field(
        default=0.0,
        metadata=_about(
            values.number(0, 30 * 86_400, "3600"),
            "seconds that `enroll` waits for the decision in all; 0: no limit",
        ),
    )
    max_in_flight: int | None = field(
        default=None,
        metadata=_about(
            values.whole(1, 1024, "32"),
            "most commands that the server may have sent without an answer",
            shown="the server's",
        ),
    )
    concurrency: int = field(
        default=32, metadata=_about(values.whole(1, 256, "16"), "commands that run at the same time")
    )
    telemetry_interval_s: float | None = field(
        default=None,
        metadata=_about(
            values.number(0.1, 86_400, "10"), "seconds between two samples of telemetry", shown="the server's"
        ),
    )
    own_process_metrics: bool = field(
        default=False,
        metadata=_about(
            values.flag(), "send this process's own figures (CPU, memory, open files) along with the telemetry"
        ),
    )
    spool_max_bytes: int = field(
        default=64 * 1024 * 1024,
        metadata=_about(
            values.whole(1 << 20, 1 << 40, "67108864"),
            "telemetry kept on disk while the server is away; the oldest is dropped and counted",
        ),
    )
    metrics_listen: str = field(
        default="127.0.0.1:9465",
        metadata=_about(values.listen_address(), 'address for Prometheus (docs/metrics.md); `""` turns it off'),
    )
    log_level: str = field(
        default="info", metadata=_about(values.one_of(LEVELS, '"debug"'), "least level of what is logged")
    )
    drivers_enabled: tuple[str, ...] = field(
        default=("host",),
        metadata=_about(values.words(), "drivers to load (docs/drivers.md)", name="drivers.enabled"),
    )
    driver_tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tables `[drivers.NAME]`; each driver checks its own."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A setting as the reference shows it."""

    field: str
    name: str
    environment: str
    kind: Kind[Any]
    help: str
    default: str


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


def declared() -> Iterator[Declared]:
    """Every setting but the drivers' tables, in the order of the reference."""
    for each in fields(Settings):
        if "kind" not in each.metadata:
            continue
        name = each.metadata["name"] or each.name
        shown = each.metadata["shown"] or ("none" if each.default is MISSING else _show(each.default))
        environment = ENVIRONMENT_PREFIX + name.upper().replace(".", "_")
        yield Declared(each.name, name, environment, each.metadata["kind"], each.metadata["help"], shown)


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
    drivers, wrong = _drivers_table(table, file)
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for each in declared():
        try:
            given = _given(each, environ, options or {}, table if each.name == each.field else drivers, file)
            sources[each.name] = given[1] if given is not None else "default"
            if given is not None:
                found[each.field] = _checked(each, *given)
            elif each.field == "state_dir":
                found[each.field] = _default_state_dir(environ)
        except ConfigError as error:
            wrong += error.problems
    wrong += [*_unknown(table, file), *_misspelt(environ), *_outside_tables(drivers, file)]
    if wrong:
        raise ConfigError(*wrong)
    found["driver_tables"] = drivers
    return Loaded(Settings(**found), sources, file)


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


def _drivers_table(table: dict[str, Any], file: ConfigFile | None) -> tuple[dict[str, Any], list[Problem]]:
    """The table `[drivers]`, taken out of `table`."""
    drivers = table.pop("drivers", {})
    if isinstance(drivers, dict):
        return dict(drivers), []
    remedy = "it must be a table: write `[drivers]` and below it `enabled = [...]`"
    return {}, [Problem("drivers", _place(file, "drivers"), remedy)]


def _outside_tables(drivers: Mapping[str, Any], file: ConfigFile | None) -> Iterator[Problem]:
    for name, settings in drivers.items():
        if not isinstance(settings, dict):
            remedy = f"settings of a driver stand in its own table, `[drivers.{name}]`{_suggest(name, ['enabled'])}"
            yield Problem(f"drivers.{name}", _place(file, "drivers", name), f"there is no such setting; {remedy}")


def _unknown(table: Mapping[str, Any], file: ConfigFile | None) -> Iterator[Problem]:
    known = [each.name for each in declared() if "." not in each.name]
    for name in table:
        yield Problem(name, _place(file, name), f"there is no such setting{_suggest(name, [*known, 'drivers'])}")


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


def _show(default: Any) -> str:
    if default is None or default in ((), b"", {}):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return "`[" + ", ".join(f'"{each}"' for each in default) + "]`"
    if isinstance(default, str):
        return f'`"{default}"`'
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
