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
    c2_fan_out,
    c3_storm,
    m1_machine,
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
        c2_fan_out,
        c3_storm,
    )
}
"""By name."""

DEFAULT_ROWS = ["M1", *(name for name, row in ROWS.items() if row.product is not None)]
"""What runs when no row is named: the machine, and all that the product is measured in. The others are bare floors."""
