"""The rows of the budget table, in the order they run."""

from types import ModuleType

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
)

ROWS: dict[str, ModuleType] = {
    module.ROW: module
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
        c2_fan_out,
        c3_storm,
    )
}
"""Name -> module with `ROW`, `WORKLOAD`, `BUDGET` and `async run(ctx) -> RowResult`."""
