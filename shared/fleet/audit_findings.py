"""What is wrong with an audit, by name (docs/protocol.md, "Audit")."""

from __future__ import annotations


class AuditFinding(Exception):
    """The audit is not what was written and signed. `code` is stable; the message names writer and row."""

    code = "FINDING"


class RowChanged(AuditFinding):
    """A row's content, or its link to the row before, is not what was hashed."""

    code = "CHANGED"


class RowRemoved(AuditFinding):
    """A row is missing between two others, or at the beginning."""

    code = "REMOVED"


class RowReordered(AuditFinding):
    """Rows come in an order in which they were not written, or twice."""

    code = "REORDERED"


class ChainTruncated(AuditFinding):
    """Rows that a checkpoint vouches for are missing at the end of a chain, or a whole chain is."""

    code = "TRUNCATED"


class CheckpointMismatch(AuditFinding):
    """A checkpoint does not fit the rows, the checkpoint before it, or the one that was remembered."""

    code = "CHECKPOINT_MISMATCH"


class CheckpointBadSignature(AuditFinding):
    """A checkpoint is not signed by the pinned authority, or speaks for another cluster."""

    code = "CHECKPOINT_BAD_SIGNATURE"


class CheckpointRolledBack(AuditFinding):
    """The newest checkpoint is older than the one that was remembered: history was cut back."""

    code = "CHECKPOINT_ROLLED_BACK"


class RowsUnsigned(AuditFinding):
    """Rows that no checkpoint covers, however long the reader waited: nobody vouches for them."""

    code = "UNSIGNED"
