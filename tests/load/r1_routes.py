"""R1: what 1,000 routes at a 10 s interval cost one replica, beside the same nodes without routes."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.routes import routes
from tests.load.results import Figures, Row, Verdict

_BUDGET_PERCENT = 5.0
_FINDING_BYTES = 160
_INTERVAL_S = 1.0


async def baseline(ctx: Context) -> Figures:
    """Bare streams that send a finding a second each: the product's own nodes without routes are what it is judged
    by."""
    return await baselines.idle_cpu(ctx, _FINDING_BYTES, _INTERVAL_S)


def judge(product: Figures, bare: Figures) -> Verdict:
    """Less than 5% of a core, on either database; the ratio is with routes over without."""
    own, without = product["routes_cpu_percent"], product["without_routes_cpu_percent"]
    met = max(own, product["on_postgres_routes_cpu_percent"]) < _BUDGET_PERCENT
    return Verdict((own + without) / without, met=met)


ROW = Row(
    "R1",
    "1,000 routes at a 10 s interval, 200 nodes, four relays, on SQLite and on PostgreSQL",
    "< 5% of a core beyond the same nodes without routes",
    baseline,
    routes,
    judge,
    timeout_s=700.0,
)
