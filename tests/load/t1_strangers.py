"""T1: what a flood of strangers costs those who belong here, beside the same fleet when it is quiet."""

from tests.load.product.flood import quiet, under_flood
from tests.load.results import Figures, Row, Verdict


def judge(product: Figures, bare: Figures) -> Verdict:
    """The tail within three times the quiet one, and no stream lost."""
    ratio = product["p99_us"] / bare["p99_us"]
    return Verdict(ratio, met=ratio <= 3.0 and product["streams_lost"] == 0)


ROW = Row(
    "T1",
    "single commands to 200 nodes under 1,000 bad handshakes a second; then as many as a core can offer",
    "p99 <= 3x quiet; no stream lost",
    quiet,
    under_flood,
    judge,
)
