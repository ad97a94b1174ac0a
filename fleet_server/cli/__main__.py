"""Entry point of `fleetctl`."""

from __future__ import annotations

from fleet_server.cli.root import fleetctl


def main() -> None:
    """Run `fleetctl` with this process's arguments; ends the process with the code from `failures.ExitCode`."""
    fleetctl(prog_name="fleetctl")


if __name__ == "__main__":
    main()
