"""Every signed statement once, as one story: node-1 enrolls, shakes hands, opens a stream, is sent commands and a
cancel; keys rotate; a route is probed. Hashes in later statements are those of earlier ones, so a reader can follow
the chain.

Its chapters: `joining`, `connecting`, `ordering`, `people`, `activating`, `routing` and `starting_over`.
"""

from __future__ import annotations

from tests.vectors import connecting, joining, ordering, routing, starting_over
from tests.vectors.activating import activation
from tests.vectors.cast import Statement
from tests.vectors.people import people


def statements() -> list[Statement]:
    """All of them, in the order of the story."""
    return [
        joining.join_token(),
        joining.enroll(),
        joining.bootstrap_poll(),
        joining.key_certificate(1),
        joining.key_certificate(2),
        joining.trust_bundle(),
        joining.next_generation(),
        joining.bootstrap(),
        connecting.handshake(),
        connecting.handshake_server(),
        connecting.stream(),
        connecting.reauth(),
        ordering.command(),
        ordering.cancel(),
        ordering.audit_checkpoint(),
        ordering.node_audit_head(),
        *people(),
        *activation(),
        *routing.routes(),
        starting_over.floor(),
        starting_over.node_key(),
    ]
