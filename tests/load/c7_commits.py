"""C7: what PostgreSQL does for one command under load, beside bare rows of a command's size."""

from tests.load.bare.postgres import commit_costs
from tests.load.product.on_postgres import database_work
from tests.load.results import Figures, Row, Verdict

_MAX_COMMITS = 0.1


def judge(product: Figures, bare: Figures) -> Verdict:
    """At most one commit for ten commands, those of transactions that only read included."""
    commits = product["commits_per_command"]
    return Verdict(commits / bare["commits_per_row_of_32"], met=commits <= _MAX_COMMITS)


ROW = Row(
    "C7",
    "PostgreSQL's commits and WAL for a command under A1's load",
    "<= 0.1 commits",
    commit_costs,
    database_work,
    judge,
)
