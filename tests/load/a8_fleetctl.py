"""A8: how long fleetctl keeps a person waiting, beside the interpreter and an import of gRPC."""

from tests.load.bare.machine import python_start_s
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "A8"
WORKLOAD = "`fleetctl --help`; `nodes list` of 1,000 nodes"
BUDGET = "<= 0.25 s; <= 0.6 s"


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    times = ctx.scaled(9, 3)
    baseline = {
        "python_s": await python_start_s("pass", times),
        "import_grpc_s": await python_start_s("import grpc", times),
    }
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
