"""A8: how long fleetctl keeps a person waiting, beside the interpreter and an import of gRPC."""

from tests.load.bare.machine import python_start_s
from tests.load.context import Context
from tests.load.product.programs import fleetctl
from tests.load.results import Figures, Row, Verdict

_MAX_HELP_S = 0.25
_MAX_LIST_S = 0.6


async def baseline(ctx: Context) -> Figures:
    """The interpreter alone, and with gRPC imported."""
    times = ctx.scaled(9, 3)
    return {
        "python_s": await python_start_s("pass", times),
        "import_grpc_s": await python_start_s("import grpc", times),
    }


def judge(product: Figures, bare: Figures) -> Verdict:
    """Both limits at once; the ratio is that of the list to an import of gRPC."""
    met = product["help_s"] <= _MAX_HELP_S and product["nodes_list_s"] <= _MAX_LIST_S
    return Verdict(product["nodes_list_s"] / bare["import_grpc_s"], met=met)


ROW = Row("A8", "`fleetctl --help`; `nodes list` of 1,000 nodes", "<= 0.25 s; <= 0.6 s", baseline, fleetctl, judge)
