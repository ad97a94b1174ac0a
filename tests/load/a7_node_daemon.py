"""A7: what the node daemon takes of its host, beside a process that only holds a stream."""

from tests.load.bare import baselines
from tests.load.product.programs import node_daemon
from tests.load.results import Figures, Row, Verdict

_MAX_RSS_MIB = 75.0
_MAX_IDLE_CPU_PERCENT = 0.5
_MAX_START_S = 1.5


def judge(product: Figures, bare: Figures) -> Verdict:
    """All three limits at once; the ratio is that of resident memory."""
    met = (
        product["rss_mib"] <= _MAX_RSS_MIB
        and product["idle_cpu_percent"] <= _MAX_IDLE_CPU_PERCENT
        and product["start_to_stream_s"] <= _MAX_START_S
    )
    return Verdict(product["rss_mib"] / bare["rss_mib"], met=met)


ROW = Row(
    "A7",
    "node daemon, one stream, host telemetry every 10 s",
    "RSS <= 75 MiB, CPU <= 0.5%, stream <= 1.5 s",
    baselines.node_process,
    node_daemon,
    judge,
)
