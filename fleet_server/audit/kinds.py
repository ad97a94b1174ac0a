"""What an audit row may say: subject and action, an enum, so that no kind is misspelt and each can be searched for."""

from __future__ import annotations

from enum import StrEnum


class AuditKind(StrEnum):
    """Every kind of audit row. Values are stable: they stand in hash chains and in operators' filters."""

    # Installation and keys
    CLUSTER_CREATED = "cluster.created"
    INSTALLATION_ACTIVATED = "installation.activated"
    INSTALLATION_OWNER_CLAIMED = "installation.owner_claimed"
    PLATFORM_GRANT_IMPORTED = "platform_grant.imported"
    SECRETS_REKEY_STARTED = "secrets.rekey_started"
    SECRETS_REKEYED = "secrets.rekeyed"
    AUTHORITY_CREATED = "authority.created"
    AUTHORITY_ROTATED = "authority.rotated"
    KEY_CREATED = "key.created"
    KEY_PREPARED = "key.prepared"
    KEY_ACTIVATED = "key.activated"
    KEY_RETIRED = "key.retired"
    KEY_REVOKED = "key.revoked"
    KEY_QUARANTINED = "key.quarantined"
    BUNDLE_PUBLISHED = "bundle.published"
    BUNDLE_BEHIND = "bundle.behind"
    AUDIT_TAMPERED = "audit.tampered"
    TLS_CA_CREATED = "tls_ca.created"
    TLS_CA_PREPARED = "tls_ca.prepared"
    TLS_CA_ACTIVATED = "tls_ca.activated"
    TLS_CA_OUTGOING = "tls_ca.outgoing"
    TLS_CA_RETIRED = "tls_ca.retired"
    TLS_CA_REVOKED = "tls_ca.revoked"
    TLS_CA_QUARANTINED = "tls_ca.quarantined"
    TLS_LEAF_ISSUED = "tls_leaf.issued"
    TLS_LEAF_QUARANTINED = "tls_leaf.quarantined"
    # What was used up or ended (a chain of its own)
    SPENT_BEGUN = "spent.begun"
    CREDENTIAL_SPENT = "credential.spent"
    # Operators
    OPERATOR_CREATED = "operator.created"
    OPERATOR_REVOKED = "operator.revoked"
    OPERATOR_TOKEN_ROTATED = "operator.token_rotated"
    OPERATOR_QUARANTINED = "operator.quarantined"
    OPERATOR_REFUSED = "operator.refused"
    OPERATOR_CALLED = "operator.called"
    OPERATOR_KEY_ENROLLED = "operator.key_enrolled"
    OPERATOR_KEY_QUARANTINED = "operator.key_quarantined"
    # What people sign
    OWNER_STATEMENT_ACCEPTED = "owner_statement.accepted"
    OWNER_STATEMENT_QUARANTINED = "owner_statement.quarantined"
    APPROVAL_REQUESTED = "approval.requested"
    APPROVAL_SIGNED = "approval.signed"
    APPROVAL_ISSUED = "approval.issued"
    APPROVAL_CLOSED = "approval.closed"
    APPROVAL_QUARANTINED = "approval.quarantined"
    # Membership
    JOIN_TOKEN_CREATED = "join_token.created"
    JOIN_TOKEN_REVOKED = "join_token.revoked"
    JOIN_TOKEN_QUARANTINED = "join_token.quarantined"
    ENROLLMENT_REQUESTED = "enrollment.requested"
    ENROLLMENT_APPROVED = "enrollment.approved"
    ENROLLMENT_REJECTED = "enrollment.rejected"
    ENROLLMENT_REFUSED = "enrollment.refused"
    ENROLLMENT_QUARANTINED = "enrollment.quarantined"
    API_KEY_ISSUED = "api_key.issued"
    API_KEY_REVOKED = "api_key.revoked"
    API_KEY_REPLACED = "api_key.replaced"
    API_KEY_QUARANTINED = "api_key.quarantined"
    ROTATION_QUARANTINED = "rotation.quarantined"
    NODE_CERTIFICATE_ISSUED = "node_certificate.issued"
    # Nodes
    NODE_STATE_CHANGED = "node.state_changed"
    NODE_LABELLED = "node.labelled"
    NODE_ACTIONS_CHANGED = "node.actions_changed"
    NODE_QUARANTINED = "node.quarantined"
    DATABASE_RESTORED = "database.restored"
    DATABASE_WENT_BACK = "database.went_back"
    NODE_RATCHET_FOREIGN = "node.ratchet_foreign"
    NODE_ADOPTED = "node.adopted"
    NODE_REBASELINED = "node.rebaselined"
    NODE_REPLACED = "node.replaced"
    NODE_DRAIN_REQUESTED = "node.drain_requested"
    NODE_DRAINED = "node.drained"
    NODE_RESUMED = "node.resumed"
    NODE_BUNDLE_REFUSED = "node.bundle_refused"
    NODE_ROTATION_ORDERED = "node.rotation_ordered"
    NODE_ROTATION_REFUSED = "node.rotation_refused"
    NODE_KEYS_REPLACED = "node.keys_replaced"
    NODE_CHECKLIST_TICKED = "node.checklist_ticked"
    NODE_AUDIT_BROKEN = "node.audit_broken"
    NODE_AUDIT_CHAIN_OPENED = "node.audit_chain_opened"
    NODE_AUDIT_PAUSED = "node.audit_paused"
    # Sessions and streams
    SESSION_REFUSED = "session.refused"
    SESSION_RENEWED = "session.renewed"
    STREAM_OPENED = "stream.opened"
    STREAM_CLOSED = "stream.closed"
    # Commands
    COMMAND_ISSUED = "command.issued"
    COMMAND_REFUSED = "command.refused"
    COMMAND_REPORTED = "command.reported"
    COMMAND_CANCEL_REQUESTED = "command.cancel_requested"
    COMMAND_CANCELLED = "command.cancelled"
    COMMAND_EXPIRED = "command.expired"
    COMMAND_INTERRUPTED = "command.interrupted"
    COMMAND_QUARANTINED = "command.quarantined"
    STATEMENT_REFUSED = "statement.refused"
    # Routes
    ROUTE_CREATED = "route.created"
    ROUTE_CHANGED = "route.changed"
    ROUTE_REMOVED = "route.removed"
    ROUTE_DECIDED = "route.decided"
    ROUTE_CONFIG_REFUSED = "route.config_refused"
    ROUTE_QUARANTINED = "route.quarantined"
    ROUTE_LEASE_QUARANTINED = "route_lease.quarantined"
    RELAY_ADDED = "relay.added"
    RELAY_CHANGED = "relay.changed"
    RELAY_REMOVED = "relay.removed"
    RELAY_QUARANTINED = "relay.quarantined"
    PROBE_LISTENER_CHANGED = "probe_listener.changed"
    PROBE_LISTENER_QUARANTINED = "probe_listener.quarantined"
    # Replicas
    REPLICA_STARTED = "replica.started"
    REPLICA_DRAIN_REQUESTED = "replica.drain_requested"
    REPLICA_STOPPED = "replica.stopped"
    REPLICA_LOST = "replica.lost"


TABLE_OF_QUARANTINE = {
    AuditKind.KEY_QUARANTINED: "command_keys",
    AuditKind.TLS_CA_QUARANTINED: "tls_cas",
    AuditKind.TLS_LEAF_QUARANTINED: "tls_leaves",
    AuditKind.OPERATOR_QUARANTINED: "operators",
    AuditKind.JOIN_TOKEN_QUARANTINED: "join_tokens",
    AuditKind.ENROLLMENT_QUARANTINED: "enrollments",
    AuditKind.API_KEY_QUARANTINED: "api_keys",
    AuditKind.ROTATION_QUARANTINED: "credential_rotations",
    AuditKind.NODE_QUARANTINED: "nodes",
    AuditKind.COMMAND_QUARANTINED: "commands",
    AuditKind.OPERATOR_KEY_QUARANTINED: "operator_keys",
    AuditKind.OWNER_STATEMENT_QUARANTINED: "cluster_people",
    AuditKind.APPROVAL_QUARANTINED: "approvals",
    AuditKind.ROUTE_QUARANTINED: "routes",
    AuditKind.ROUTE_LEASE_QUARANTINED: "route_leases",
    AuditKind.RELAY_QUARANTINED: "relays",
    AuditKind.PROBE_LISTENER_QUARANTINED: "route_peers",
}
"""Kinds that tell of one row whose MAC did not fit, and the table that it stands in."""
