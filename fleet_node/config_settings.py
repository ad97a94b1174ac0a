"""Every setting of a node, declared once: what it may hold, its default, and what the reference says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from fleet.logs import LEVELS
from fleet_node import config_values as values
from fleet_node.config_values import Kind

ENVIRONMENT_PREFIX = "FLEET_NODE_"


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
        metadata=_about(
            values.listen_address('"127.0.0.1:9465"'), 'address for Prometheus (docs/metrics.md); `""` turns it off'
        ),
    )
    probe_listen: str = field(
        default="",
        metadata=_about(
            values.listen_address('"10.1.2.3:9470"'),
            'address for probes of other nodes, which come over routes that the server hands out; `""` turns it off',
        ),
    )
    probe_endpoints: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            values.probe_endpoints(),
            "where other nodes reach `probe_listen`, preferred first; needed when that listens on every address",
            shown="`probe_listen`",
        ),
    )
    routes_authority_required: bool = field(
        default=True,
        metadata=_about(
            values.flag(),
            "take routes and leases only with the cluster authority's signature; false is UNSAFE: whoever can speak for"
            " the server can have this node call and answer whom they like",
            name="routes.authority_required",
        ),
    )
    routes_peer_endpoints: Mapping[str, str] = field(
        default_factory=dict,
        metadata=_about(
            values.peer_endpoints(),
            "where this node calls some of its peers, whatever they say: behind a port forward, or on a network of"
            " their own; what answers there must still prove that it is that peer",
            name="routes.peer_endpoints",
        ),
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

    @property
    def table(self) -> str:
        """The file's table that it stands in; empty for none."""
        return self.name.rpartition(".")[0]


def declared() -> Iterator[Declared]:
    """Every setting but the drivers' tables, in the order of the reference."""
    for each in fields(Settings):
        if "kind" not in each.metadata:
            continue
        name = each.metadata["name"] or each.name
        shown = each.metadata["shown"] or ("none" if each.default is MISSING else _show(each.default))
        environment = ENVIRONMENT_PREFIX + name.upper().replace(".", "_")
        yield Declared(each.name, name, environment, each.metadata["kind"], each.metadata["help"], shown)


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
