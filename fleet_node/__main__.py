"""Entry point of `fleet-node`."""

from __future__ import annotations

import os

from fleet.standard_streams import carry_output
from fleet_node.cli.root import fleet_node


def main() -> None:
    """Run `fleet-node` with this process's arguments; ends the process with the code from `grammar.ExitCode`."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the C core's own lines would break up the log's JSON
    with carry_output():
        fleet_node(prog_name="fleet-node")


if __name__ == "__main__":
    main()
