"""One run: a trace, a policy, what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from fleet_node.routes.rules import HeldLease
from fleet_node.routes.rules import Policy as NodePolicy
from fleet_server.routes.rules import Policy, decide
from tests.simulation.measure import Measure
from tests.simulation.mesh import Mesh
from tests.simulation.node import Frame, Node, Snapshot
from tests.simulation.server import Decide, Server
from tests.simulation.timeline import Timeline
from tests.simulation.trace import Event, Trace

HANGUP_MS = 1_000
HELLO_MS = 2_000


@dataclass(frozen=True, slots=True)
class Outcome:
    measure: Measure
    server: Server
    nodes: dict[str, Node]


def simulate(trace: Trace, decider: Decide = decide, policy: Policy | None = None) -> Outcome:
    plan, policy, timeline = trace.plan, policy or Policy(), Timeline()
    timeline.now_ms = 1_000  # 0 is `never` in what the server remembers
    mesh = Mesh(plan)
    measure = Measure(plan, mesh, timeline)
    rules = NodePolicy(
        min_refresh_interval_ms=policy.min_refresh_interval_ms,
        no_change_cooldown_ms=policy.no_change_cooldown_ms,
        no_change_cooldown_max_ms=policy.no_change_cooldown_max_ms,
        degraded_rtt_us=policy.degraded_rtt_us,
        degraded_loss_permille=policy.degraded_loss_permille,
    )
    nodes: dict[str, Node] = {}

    def delay_ms(node_id: str) -> int:
        return 20 + 37 * int(node_id[1:]) % 230

    def snapshot(node_id: str, snapshot: Snapshot) -> None:
        timeline.after(delay_ms(node_id), nodes[node_id].snapshot, snapshot)

    def lease(node_id: str, lease: HeldLease) -> None:
        timeline.after(delay_ms(node_id), nodes[node_id].lease, lease)

    server = Server(plan, timeline, decider, policy, snapshot, lease)

    def join(node_id: str) -> Node:
        def uplink(frame: Frame) -> None:
            timeline.after(delay_ms(node_id), server.received, node_id, frame)

        return Node(node_id, timeline, mesh, rules, uplink, measure.in_force, plan.seed)

    nodes.update({node.node_id: join(node.node_id) for node in plan.nodes})
    for node in nodes.values():
        node.meet(nodes)

    def happen(event: Event) -> None:
        up_before = event.what.startswith("node") and mesh.node_up(event.who[0])
        mesh.happen(event)
        if event.what.startswith("node") and mesh.node_up(event.who[0]) != up_before:
            _node_changed(event.who[0], up=not up_before)
        measure.happened(event)

    def _node_changed(node_id: str, *, up: bool) -> None:
        if not up:
            nodes[node_id].died()
            timeline.after(HANGUP_MS, hang_up, node_id)
        else:
            nodes[node_id].returned()
            timeline.after(HELLO_MS, hello, node_id)

    def hang_up(node_id: str) -> None:
        if not mesh.node_up(node_id):
            server.stream_ended(node_id)

    def hello(node_id: str) -> None:
        if mesh.node_up(node_id):
            server.stream_opened(node_id)

    for event in trace.events:
        timeline.at(event.at_ms, happen, event)
    timeline.run(plan.duration_ms)
    measure.end()
    return Outcome(measure, server, nodes)


def record(trace: Trace) -> Trace:
    """The trace with the decisions that the rules make on it."""
    return Trace(trace.plan, trace.events, tuple(simulate(trace).server.decisions))
