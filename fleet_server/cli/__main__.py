"""Entry point of `fleetctl`."""

from __future__ import annotations

import os

from fleet_server.cli.root import fleetctl


def main() -> None:
    """Run `fleetctl` with this process's arguments; ends the process with the code from `failures.ExitCode`."""
    # gRPC's own log lines would stand between the person and the sentence that says what is wrong.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    fleetctl(prog_name="fleetctl")


if __name__ == "__main__":
    main()
