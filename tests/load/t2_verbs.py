"""T2: how soon a decision reaches a stream that another replica holds, beside one made at the holding replica."""

from tests.load.product.verbs import at_another_replica, at_the_holding_replica
from tests.load.results import Figures, Row, Verdict

_WITHIN_S = 1.0


def judge(product: Figures, bare: Figures) -> Verdict:
    """Every figure that names the slowest of its kind within a second, counted from the call; the ratio is theirs."""
    return Verdict(_slowest_s(product) / _slowest_s(bare), met=_slowest_s(product) <= _WITHIN_S)


def _slowest_s(figures: Figures) -> float:
    return max(value for name, value in figures.items() if name.endswith("_max_s"))


ROW = Row(
    "T2",
    "suspend, resume, rotate, revoke at a replica that does not hold the stream; two on one PostgreSQL",
    "in force on the stream <= 1 s after the call",
    at_the_holding_replica,
    at_another_replica,
    judge,
)
