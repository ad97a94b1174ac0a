"""`fleet-server run`: one server, or with `--workers` what supervises several, or one of these."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.heap import starting
from fleet_server.verbs import BadSetup, Verb, load_settings, repeated_options, settings_options

# Everything heavy is imported by what needs it: help is there at once.
if TYPE_CHECKING:
    from fleet.service_manager import ServiceManager
    from fleet_server.config import Settings
    from fleet_server.workers.line import Line

_MAX_REPLICA_ID_CHARS = 60  # of 63, with room for a worker's number


@click.command(cls=Verb, example="fleet-server run --config /etc/fleet/fleet-server.toml")
@click.option("--strict", is_flag=True, help="Serve only once it is activated; production does anyway.")
@click.option("--workers", type=click.IntRange(1, 64), help="Server processes that share the listeners.")
@click.option("--worker", hidden=True)
@settings_options
@starting()
def run(
    strict: bool,
    workers: int | None,
    worker: str | None,
    file: Path | None,
    data_dir: str | None,
    pairs: tuple[str, ...],
) -> None:
    """Serve nodes and operators until SIGTERM or SIGINT; a second signal shortens the drain.

    45 s after the drain's deadline the process is gone, whatever hangs; something did if its exit code is 1. With
    several workers SIGHUP replaces one after the other.
    """
    if strict:
        pairs = (*pairs, "strict=true")
    if workers is not None:
        pairs = (*pairs, f"workers={workers}")
    settings = load_settings(file, data_dir, pairs).settings
    if worker is not None:
        _work(settings, worker)
    elif settings.workers > 1:
        _supervise(settings, [*repeated_options(file, data_dir, pairs)])
    else:
        from fleet.service_manager import from_environment

        _serve(settings, from_environment())


def _serve(settings: Settings, manager: ServiceManager, line: Line | None = None) -> None:
    from fleet.clock import SystemClock
    from fleet_server import bootstrap
    from fleet_server.observability import logging as server_logging

    server_logging.configure(settings.log_level, log_format=settings.log_format)
    bootstrap.require_schema(settings)
    with bootstrap.sole_server(settings) as held:
        secrets = bootstrap.load_secrets(settings)
        certificates = bootstrap.open_tls(settings, SystemClock())
        from fleet.process_end import end_without_teardown
        from fleet_server.daemon import serve
        from fleet_server.listeners import ListenError

        try:
            code = serve(settings, secrets, certificates, manager, place=held.place(), line=line)
        except ListenError as error:
            raise BadSetup(str(error)) from error
    end_without_teardown(code)
    raise SystemExit(code)


def _work(settings: Settings, handed: str) -> None:
    """Be one of several workers: a server with a name, and a metrics port, of its own."""
    from fleet_server.replicas.identity import own_replica_id
    from fleet_server.workers.line import Line
    from fleet_server.workers.plan import WorkerSpec, worker_id

    spec = WorkerSpec.read(handed)
    base = settings.replica_id or own_replica_id(settings.data_dir)
    siblings = frozenset(worker_id(base, number) for number in range(1, settings.workers + 1))
    line = Line(spec, siblings)
    changes = {"replica_id": worker_id(base, spec.number)}
    if settings.metrics_listen not in ("", "off"):
        host, _, port = settings.metrics_listen.rpartition(":")
        changes["metrics_listen"] = f"{host}:{int(port) + spec.number}"
    _serve(settings.model_copy(update=changes), line.manager, line)


def _supervise(settings: Settings, arguments: list[str]) -> None:
    """See that several workers can be started, then become their supervisor, without what that took to find out."""
    from fleet_server import bootstrap, listeners
    from fleet_server.replicas.identity import own_replica_id
    from fleet_server.workers.plan import Plan

    if bootstrap.is_sqlite(settings):
        raise BadSetup(
            f"workers = {settings.workers} needs PostgreSQL, for one process alone can write a SQLite file: set"
            " database_url to a PostgreSQL database, or workers = 1"
        )
    listened = {"gateway_listen", "mtls_listen", "admin_listen", "metrics_listen"}
    addresses = {name: getattr(settings, name) for name in sorted(listened)}
    for name, address in addresses.items():
        if address in ("", "off"):
            continue
        if listeners.split_listen(address)[1] == 0:
            raise BadSetup(f"{name} takes any free port, and {settings.workers} workers share one: name a port")
        try:
            listeners.check_free(address, name)
        except listeners.ListenError as error:
            raise BadSetup(str(error)) from error
    bootstrap.require_schema(settings)
    with bootstrap.sole_server(settings) as held:
        bootstrap.load_secrets(settings)
        base = settings.replica_id or own_replica_id(settings.data_dir)
        if len(base) > _MAX_REPLICA_ID_CHARS:
            raise BadSetup(f"replica_id has {len(base)} characters; with workers it may have {_MAX_REPLICA_ID_CHARS}")
        plan = Plan(
            count=settings.workers,
            arguments=arguments,
            log_level=settings.log_level,
            log_format=settings.log_format,
            probe="" if addresses["metrics_listen"] == "off" else addresses["metrics_listen"],
            locks=held.locks,
        )
        for lock in held.locks:
            os.set_inheritable(lock, True)
        command_line = plan.command_line()
        os.execv(command_line[0], command_line)  # noqa: S606 - this program again, and no shell
