"""What `fleet-server run --workers N` becomes: the supervisor, in the same process, without what loading settings took.

Its one argument is a `Plan`.
"""

from __future__ import annotations

import asyncio
import os
import sys

from fleet.clock import SystemClock
from fleet.logs import get_logger
from fleet.metrics import Registry
from fleet.metrics_listener import MetricsListener
from fleet.service_manager import from_environment
from fleet_server.observability import logging as server_logging
from fleet_server.workers.plan import Plan
from fleet_server.workers.supervisor import Supervisor

_BAD_SETUP = 2


async def _supervise(plan: Plan) -> int:
    supervisor = Supervisor(plan, from_environment(), SystemClock())
    probe = MetricsListener(Registry(), healthz=supervisor.healthz, readyz=supervisor.readyz)
    if plan.probe:
        host, _, port = plan.probe.rpartition(":")
        try:
            await probe.start(host.strip("[]"), int(port))
        except OSError as error:
            print(f"error: cannot listen on {plan.probe} (metrics_listen): {error.strerror}", file=sys.stderr)
            return _BAD_SETUP
    try:
        return await supervisor.run()
    finally:
        await probe.close()


def main() -> int:
    """Carry out the plan; the exit code."""
    plan = Plan.read(sys.argv[1])
    for lock in plan.locks:
        os.set_inheritable(lock, False)  # no worker is to hold them longer than this process
    server_logging.configure(plan.log_level, log_format=plan.log_format)
    get_logger(__name__).info("supervising", workers=plan.count)
    return asyncio.run(_supervise(plan))


if __name__ == "__main__":
    sys.exit(main())
