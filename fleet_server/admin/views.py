"""Records of the rooms as messages of the Admin service. Nothing else; secrets are in no record that comes here."""

from __future__ import annotations

from fleet.v1 import admin_pb2, session_pb2
from fleet_server.admin.store import Operator
from fleet_server.enrollment.rules import EnrollmentRecord, JoinTokenRecord
from fleet_server.nodes.checklist import ChecklistItem
from fleet_server.nodes.record import NodeRecord
from fleet_server.replicas.rules import ReplicaRecord


def operator_view(operator: Operator) -> admin_pb2.OperatorView:
    """An operator without the token."""
    return admin_pb2.OperatorView(
        operator_id=operator.operator_id,
        name=operator.name,
        role=operator.role.word if operator.intact else "quarantined",
        created_at_ms=operator.created_at_ms,
        revoked_at_ms=operator.revoked_at_ms,
    )


def node_view(node: NodeRecord) -> admin_pb2.NodeView:
    """A node."""
    return admin_pb2.NodeView(
        node_id=node.node_id,
        name=node.name,
        site=node.site,
        state=node.state,
        online=node.online,
        labels=dict(node.labels),
        reported_labels=dict(node.reported_labels),
        fingerprint=node.fingerprint,
        version=node.version,
        replica_id=node.replica_id if node.online else "",
        stream_epoch=node.stream_epoch,
        last_seq=node.last_seq,
        last_accepted_seq=node.last_accepted_seq,
        open_commands=node.open_commands,
        last_seen_ms=node.last_seen_ms,
        enrolled_at_ms=node.enrolled_at_ms,
        rtt_us=node.rtt_us,
        clock_offset_ms=node.clock_offset_ms,
        drain_state=node.drain_state,
        bundle_version=session_pb2.BundleVersion(generation=node.bundle_generation, number=node.bundle_number),
        state_reason=node.state_reason,
        rotating=node.rotating,
        checklist_open=node.checklist_open,
    )


def checklist_view(item: ChecklistItem) -> admin_pb2.ChecklistItem:
    """One item of a revoked node's checklist."""
    return admin_pb2.ChecklistItem(
        item=item.item, detail=item.detail, done_at_ms=item.done_at_ms, done_by=item.done_by, note=item.note
    )


def replica_view(replica: ReplicaRecord) -> admin_pb2.ReplicaView:
    """A server process."""
    return admin_pb2.ReplicaView(
        replica_id=replica.replica_id,
        state=replica.state,
        version=replica.version,
        streams=replica.streams,
        started_at_ms=replica.started_at_ms,
        heartbeat_at_ms=replica.heartbeat_at_ms,
        admission_per_s=replica.admission_per_s,
        max_streams=replica.max_streams,
    )


def join_token_view(token: JoinTokenRecord, now_ms: int) -> admin_pb2.JoinTokenView:
    """A join token without its secret."""
    return admin_pb2.JoinTokenView(
        token_id=token.token_id,
        site=token.site,
        expires_at_ms=token.expires_at_ms,
        max_uses=token.max_uses,
        uses=token.uses,
        auto_approve=token.auto_approve,
        created_by=token.created_by,
        created_at_ms=token.created_at_ms,
        revoked_at_ms=token.revoked_at_ms,
        state=token.state(now_ms),
    )


def enrollment_view(enrollment: EnrollmentRecord) -> admin_pb2.EnrollmentView:
    """A request to join."""
    return admin_pb2.EnrollmentView(
        enrollment_id=enrollment.enrollment_id,
        name=enrollment.name,
        state=enrollment.state,
        fingerprint=enrollment.fingerprint,
        site=enrollment.site,
        token_id=enrollment.token_id,
        reported_labels=dict(enrollment.reported_labels),
        version=enrollment.version,
        created_at_ms=enrollment.created_at_ms,
        decided_at_ms=enrollment.decided_at_ms,
        decided_by=enrollment.decided_by,
        node_id=enrollment.node_id,
        peer_address=enrollment.peer_address,
        reason=enrollment.reason,
    )
