"""The rows of the budget table, in the order they run."""

from tests.load import (
    a1_commands,
    a2_latency,
    a3_telemetry,
    a4_telemetry_full,
    a5_idle_memory,
    a6_idle_cpu,
    a7_node_daemon,
    a8_fleetctl,
    c1_postgres,
    c2_fan_out,
    c3_storm,
    c4_rolling,
    c5_growth,
    c6_churn,
    c7_commits,
    m1_machine,
    r1_routes,
    t1_strangers,
    t2_verbs,
)
from tests.load.results import Row

ROWS: dict[str, Row] = {
    module.ROW.name: module.ROW
    for module in (
        m1_machine,
        a1_commands,
        a2_latency,
        a3_telemetry,
        a4_telemetry_full,
        a5_idle_memory,
        a6_idle_cpu,
        a7_node_daemon,
        a8_fleetctl,
        t1_strangers,
        t2_verbs,
        c1_postgres,
        c2_fan_out,
        c3_storm,
        c4_rolling,
        c5_growth,
        c6_churn,
        c7_commits,
        r1_routes,
    )
}
"""By name."""

DEFAULT_ROWS = [name for name in ROWS if name[0] in "MAT"]
"""What runs when no row is named: the machine, and one process on SQLite. The C rows, with PostgreSQL, replicas and
thousands of nodes, take longer than all of these; R1 takes minutes, for probes are seldom."""


def named(words: list[str]) -> list[str]:
    """Rows by name, or all whose name begins with a group's letter, in the order they run; `DEFAULT_ROWS` for no words.

    Raises:
        KeyError: with the words that name nothing.
    """
    asked = {word.upper() for word in words}
    unknown = [word for word in words if word.upper() not in {*ROWS, *(name[0] for name in ROWS)}]
    if unknown:
        raise KeyError(", ".join(unknown))
    return [name for name in ROWS if {name, name[0]} & asked] if asked else DEFAULT_ROWS
