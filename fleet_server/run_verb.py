"""`fleet-server run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.verbs import BadSetup, Verb, load_settings, settings_options

# Everything heavy is imported by what needs it: help is there at once.
if TYPE_CHECKING:
    from fleet.service_manager import ServiceManager
    from fleet_server.config import Settings


@click.command(cls=Verb, example="fleet-server run --config /etc/fleet/fleet-server.toml")
@click.option("--strict", is_flag=True, help="Serve only once it is activated; production does anyway.")
@settings_options
def run(strict: bool, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Serve nodes and operators until SIGTERM or SIGINT; a second signal shortens the drain.

    45 s after the drain's deadline the process is gone, whatever hangs; something did if its exit code is 1.
    """
    from fleet.service_manager import from_environment

    manager = from_environment()
    settings = load_settings(file, data_dir, (*pairs, "strict=true") if strict else pairs).settings
    _serve(settings, manager)


def _serve(settings: Settings, manager: ServiceManager) -> None:
    from fleet.clock import SystemClock
    from fleet_server import bootstrap
    from fleet_server.observability import logging as server_logging

    server_logging.configure(settings.log_level, log_format=settings.log_format)
    bootstrap.require_schema(settings)
    with bootstrap.sole_server(settings):
        secrets = bootstrap.load_secrets(settings)
        certificates = bootstrap.open_tls(settings, SystemClock())
        from fleet.process_end import end_without_teardown
        from fleet_server.daemon import serve
        from fleet_server.listeners import ListenError

        try:
            code = serve(settings, secrets, certificates, manager)
        except ListenError as error:
            raise BadSetup(str(error)) from error
    end_without_teardown(code)
    raise SystemExit(code)
