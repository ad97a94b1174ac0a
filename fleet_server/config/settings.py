"""Every setting of the server: type, bounds, default, meaning. docs/server-settings.md is generated from here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from fleet.key_file import parse_public_key
from fleet.logs import LEVELS
from fleet.tls import split_endpoint
from fleet_server.config.values import (
    Endpoints,
    Hosts,
    LeafHashes,
    Listen,
    MaybeListen,
    Name,
    OptionalListen,
    OptionalName,
    RootKey,
    WakeupTransport,
)

ENV_PREFIX = "FLEET_"
_DAY_S = 24 * 3600


class Settings(BaseSettings):
    """What the server runs with. Build it with `load`, which says where a wrong value came from."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=True,
    )

    mode: Literal["development", "production"] = Field(
        "development",
        description="`production` refuses to start without a secret encryption key and gateway endpoints of its own.",
    )
    strict: bool | None = Field(
        None,
        description="Serve only once an activation manifest that `product_root_key` signed was imported; see"
        " [activate.md](operations/activate.md). Empty: yes in production.",
    )
    product_root_key: RootKey = Field(
        "",
        description="Public key of the product root, as `fleetctl root keygen` prints it: `ed25519:` and base64."
        " Strict mode needs it.",
    )
    data_dir: Path = Field(
        Path("fleet-data"),
        description="Folder of the server's own state (TLS keys, SQLite database), mode 0700.",
    )
    cluster_name: Name = Field("main", description="Name of the cluster that this server serves.")
    replica_id: OptionalName = Field(
        "",
        description="Name of this replica, unlike every other one's. Empty: made once, kept in the data folder.",
    )

    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Server processes that share this machine's listeners, each a replica of its own (`replica_id` with"
        " `-1`, `-2`, …) with database connections of its own; more than one needs PostgreSQL. See"
        " [run.md](operations/run.md).",
    )

    # Nodes come from everywhere; everyone else is let in deliberately.
    gateway_listen: Listen = Field("0.0.0.0:7443", description="Where nodes connect.")
    mtls_listen: MaybeListen = Field(
        "",
        description="Where nodes connect that hold a client certificate, beside `gateway_listen`, which they still need"
        " to enroll and for their first one. Empty: nowhere.",
    )
    admin_listen: Listen = Field("127.0.0.1:7444", description="Where operators (`fleetctl`) connect.")
    metrics_listen: OptionalListen = Field(
        "127.0.0.1:9464",
        description="Where Prometheus scrapes; `off` for no metrics. With `workers` the first one is scraped at"
        " the next port, the second at the one after it, and so on; at this port are /healthz and /readyz of all.",
    )
    gateway_endpoints: Endpoints = Field(
        (),
        description="`host:port` under which nodes reach the gateway, preferred first; they travel in join tokens and"
        " trust bundles. Nodes are offered those of every replica, the list that was changed last first; what no"
        " replica has named for a day is dropped. Empty, in development: 127.0.0.1 and the port of `gateway_listen`.",
    )

    tls_hosts: Hosts = Field(
        (),
        description="Names and addresses in the server's certificate, beside `gateway_endpoints` and localhost.",
    )
    tls_terminator_leaf_sha256: LeafHashes = Field(
        (),
        description="SHA-256 (hexadecimal, of the DER) of the certificates of TLS terminators in front of it.",
    )

    database_url: SecretStr = Field(
        SecretStr(""),
        description="`sqlite:////folder/fleet.db` or `postgresql+psycopg://user:password@host/name`. Of several"
        " servers, `postgresql+psycopg://user:password@/name?host=a:5432&host=b:5432`, the one that takes writes is"
        " found. Empty: `fleet.db` in the data folder.",
    )
    wakeup: WakeupTransport = Field(
        "",
        description="How replicas wake each other at once; without it, or while it is down, they poll within 2 s."
        " `notify`: LISTEN/NOTIFY of PostgreSQL. `nats://host:port`, or `tls://host:port`, several with commas: NATS"
        " (package `fleet-gateway[nats]`). `off`: not at all. Empty or `auto`: `notify` on PostgreSQL.",
    )
    wakeup_credentials_file: Path | None = Field(
        None, description="File, mode 0600, for NATS: an NKey seed, a `.creds` file, `user:password`, or a token."
    )
    wakeup_ca_file: Path | None = Field(
        None, description="CAs (PEM) that sign the certificate of NATS. Empty: those of the machine."
    )
    database_readers: int = Field(4, ge=1, le=64, description="Connections, and threads, that read.")
    secret_encryption_key: SecretStr = Field(
        SecretStr(""),
        description="32 bytes in base64 under which private keys rest and rows are marked: `openssl rand -base64 32`."
        " Empty, in development: `secret.key` in the data folder.",
    )
    secret_encryption_key_file: Path | None = Field(
        None, description="File, mode 0600, that holds the secret encryption key."
    )

    secret_encryption_key_previous: SecretStr = Field(
        SecretStr(""),
        description="The key before, while `fleet-server secrets rekey` replaces it: it opens and verifies as well."
        " See [rekey.md](operations/rekey.md).",
    )
    secret_encryption_key_previous_file: Path | None = Field(None, description="File, mode 0600, that holds it.")

    heartbeat_interval_s: float = Field(
        15.0,
        ge=1,
        le=300,
        description="Seconds between beats of a stream: a ping, unless both sides spoke. Stretched as the fleet grows.",
    )
    session_ttl_s: int = Field(900, ge=60, le=_DAY_S, description="Seconds that a session token is valid.")
    drain_deadline_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Seconds that streams get to move to another replica when this one stops; 45 s after them at the "
        "latest the process is gone.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="Seconds that a server which stops is not ready and still lets nodes in, before its drain begins:"
        " as long as a load balancer or Kubernetes takes to notice.",
    )
    rebalance: bool = Field(
        True,
        description="Whether this server hands nodes on, a few at a time, when another replica holds less than its"
        " share.",
    )
    max_streams: int = Field(20_000, ge=1, le=200_000, description="Most streams that this replica holds.")
    # Nodes fill frames to these limits of the protocol: a server that took less would cut one off for ever, each time
    # at the same reports.
    max_frame_bytes: int = Field(
        1024 * 1024, ge=1024 * 1024, le=4 * 1024 * 1024, description="Largest frame on a stream, in bytes."
    )
    # Less than 16 KiB would not hold every series that the protocol allows.
    max_telemetry_frame_bytes: int = Field(
        64 * 1024, ge=16 * 1024, le=64 * 1024, description="Largest telemetry frame, in bytes."
    )
    handshake_rate_per_s: float = Field(
        0.0, ge=0, le=100_000, description="Handshakes admitted a second; 0 follows their measured cost."
    )
    handshake_concurrency: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Calls without a session that are worked on at once; twice as many that complete a handshake.",
    )
    command_key_rotation_days: int = Field(
        0,
        ge=0,
        le=3650,
        description="Days between two command keys: the next one is prepared a day ahead, and activated once every node"
        " that is online or was seen within a day knows it. 0 for rotation by hand.",
    )
    node_rotations_per_day: int = Field(
        24,
        ge=1,
        le=10_000,
        description="How often a node may replace its own keys in 24 hours without an operator's order; refused"
        " attempts count.",
    )
    approval_retention_s: int = Field(
        90 * _DAY_S,
        ge=_DAY_S,
        le=3650 * _DAY_S,
        description="Seconds that an approval is kept after its intent has ended; the audit keeps what was decided.",
    )
    command_retention_s: int = Field(
        90 * _DAY_S,
        ge=31 * _DAY_S,
        le=3650 * _DAY_S,
        description="Seconds that commands are kept after the last one of their issue has ended; the audit keeps who"
        " issued them and what became of them. No less than 31 days: so long a request may come again.",
    )
    telemetry_retention_s: int = Field(
        7 * _DAY_S, ge=3600, le=400 * _DAY_S, description="Seconds that telemetry history is kept."
    )
    lease_ttl_s: int = Field(
        120,
        ge=2,
        le=3600,
        description="Seconds that the lease of a relay on a route lives; it is renewed when a third of them are over.",
    )
    relay_loss_s: float = Field(
        15.0,
        ge=1,
        le=3600,
        description="Seconds that a relay may be offline before the routes over it get another way.",
    )
    route_retention_s: int = Field(
        7 * _DAY_S,
        ge=3600,
        le=400 * _DAY_S,
        description="Seconds that observations of routes and decisions about them are kept; the newest decision of a"
        " route stays.",
    )
    route_degraded_rtt_ms: int = Field(
        400,
        ge=1,
        le=60_000,
        description="Round trip in milliseconds from which on a path is DEGRADED. Of another value for this, or for the"
        " next four, a node hears with the next change of its routes.",
    )
    route_degraded_loss_permille: int = Field(
        100, ge=1, le=1000, description="Lost probes per thousand from which on a path is DEGRADED."
    )
    route_refresh_interval_s: float = Field(
        5.0,
        ge=0.1,
        le=3600,
        description="Seconds between two asks of a node for its routes on behalf of one, at least.",
    )
    route_cooldown_s: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description="Seconds for which an ask that changed nothing holds back the next for that route and relay;"
        " doubles each time.",
    )
    route_cooldown_max_s: float = Field(900.0, ge=0.1, le=86_400, description="What that doubles up to.")
    export_url: str = Field(
        "",
        description="Where `fleet-server export` sends telemetry as OTLP: `http(s)://host:port/path` or"
        " `grpc(s)://host:port`; see [telemetry.md](operations/telemetry.md).",
    )
    export_headers_file: Path | None = Field(
        None, description="File, mode 0600, of headers to send there, one `Name: value` a line: tokens belong here."
    )
    export_ca_file: Path | None = Field(
        None, description="CAs (PEM) that vouch for it; empty: those of the system, or over gRPC those that it brings."
    )
    export_metrics_listen: OptionalListen = Field(
        "127.0.0.1:9466", description="Where Prometheus scrapes `fleet-server export`; `off` for no metrics."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description=f"Least level that is logged: {', '.join(LEVELS)}."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="`auto` writes aligned text to a terminal and JSON lines elsewhere."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` gathered: it knows where each value came from."""
        return (init_settings,)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if wrong := [*self._set_twice(), *self._lacking()]:
            raise ValueError("\n".join(wrong))
        return self

    def _set_twice(self) -> Iterator[str]:
        for name in ("secret_encryption_key", "secret_encryption_key_previous"):
            if getattr(self, name).get_secret_value() and getattr(self, f"{name}_file") is not None:
                yield f"{name} and {name}_file are both set: keep one of them"

    def _lacking(self) -> Iterator[str]:
        if self.production and not (self.secret_encryption_key.get_secret_value() or self.secret_encryption_key_file):
            yield (
                "production needs a secret encryption key: set FLEET_SECRET_ENCRYPTION_KEY,"
                " or secret_encryption_key_file (make a key with `openssl rand -base64 32`)"
            )
        if self.production and not self.gateway_endpoints:
            yield "production needs gateway_endpoints: the host:port where nodes reach the gateway"
        elif not self.gateway_endpoints and self.gateway_listen.rpartition(":")[2].strip("0") == "":
            yield "gateway_listen takes any free port: set gateway_endpoints to where nodes reach it, or name a port"
        if self.is_strict and not self.product_root_key:
            yield (
                "strict mode, which production is in, needs product_root_key: make one offline with `fleetctl root"
                " keygen`; or set strict = false, and whoever runs `fleet-server init` is the first owner"
            )
        if self.wakeup not in ("", "auto", "off") and self.resolved_database_url().startswith("sqlite"):
            yield "wakeup is for replicas, and SQLite serves one process: use PostgreSQL, or leave wakeup empty"
        if (self.wakeup_credentials_file or self.wakeup_ca_file) and "://" not in self.wakeup:
            yield "wakeup_credentials_file and wakeup_ca_file are for NATS: set wakeup to nats://host:port or tls://…"
        if self.route_cooldown_max_s < self.route_cooldown_s:
            yield "route_cooldown_max_s is less than route_cooldown_s: raise it"
        if self.session_ttl_s < 2 * self.heartbeat_interval_s:
            # Sessions are renewed at heartbeats: these would end before anybody asked.
            yield "session_ttl_s is less than two heartbeat_interval_s: raise it, or beat more often"

    @property
    def production(self) -> bool:
        """Whether this is no development server."""
        return self.mode == "production"

    @property
    def is_strict(self) -> bool:
        """Whether it serves only once it is activated."""
        return self.production if self.strict is None else self.strict

    def root_key(self) -> bytes:
        """The pinned product root's raw public key; empty for none."""
        return parse_public_key(self.product_root_key) if self.product_root_key else b""

    def resolved_database_url(self) -> str:
        """The database's URL, credentials included: hand it to the database and nowhere else."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir.absolute() / 'fleet.db'}"

    def advertised_endpoints(self) -> tuple[str, ...]:
        """Gateway endpoints for join tokens and bundles."""
        return self.gateway_endpoints or (f"127.0.0.1:{self.gateway_listen.rpartition(':')[2]}",)

    def certificate_hosts(self) -> tuple[str, ...]:
        """Names and addresses that the server's certificate is for; the first names it."""
        advertised = (split_endpoint(endpoint)[0] for endpoint in self.gateway_endpoints)
        return tuple(dict.fromkeys([*advertised, *self.tls_hosts, "localhost", "127.0.0.1", "::1"]))

    def terminator_leaves(self) -> frozenset[bytes]:
        """SHA-256 of the certificates of TLS terminators, 32 bytes each."""
        return frozenset(bytes.fromhex(text) for text in self.tls_terminator_leaf_sha256)
