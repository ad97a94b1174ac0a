"""`fleetctl run` of a protected action: sign, propose, and wait until enough others have signed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleet_server.cli.failures import Failed, Refused, Unreachable
from fleet_server.cli.invocation import Invocation

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin

_LOOK_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Signing:
    """How a person signs, and waits for others.

    Args:
        within_s: how long others may take.
        yes: sign without asking.
        wait: wait for the others.
        deadline: on the monotonic clock; None waits as long as it takes.
    """

    key_file: Path
    passphrase_file: Path | None
    within_s: int
    yes: bool
    wait: bool
    deadline: float | None

    def issue(
        self, invocation: Invocation, admin: Admin, request: admin_pb2.IssueCommandsRequest
    ) -> admin_pb2.IssueCommandsResponse | None:
        """Issue what the server refused to issue unsigned; None when it waits for others, and nobody waits here.

        Raises:
            Failure: as `intents.draw_up`; it was rejected, or expired.
        """
        from fleet_server.cli import approvals, intents

        proposal = intents.draw_up(
            invocation,
            admin,
            request,
            key_file=self.key_file,
            passphrase_file=self.passphrase_file,
            within_s=self.within_s,
            yes=self.yes,
        )
        try:
            proposed = admin.call(admin.stub.ProposeCommand, proposal)
        except Unreachable as failure:
            failure.hint += "; whether it waits or was issued is not known: `fleetctl approvals list --all`"
            raise
        if proposed.HasField("issue"):
            return proposed.issue
        approvals.say_waiting(invocation, proposed.approval)
        if not self.wait:
            if invocation.wants_json:
                invocation.emit_json(intents.to_json(proposed.approval))
            else:
                invocation.emit_text(proposed.approval.approval_id)
            return None
        try:
            return self._wait_signed(invocation, admin, proposal, proposed.approval.approval_id)
        except KeyboardInterrupt:
            invocation.say(f"It goes on waiting for signatures: `fleetctl approvals show {_short(proposed.approval)}`")
            raise

    def _wait_signed(
        self, invocation: Invocation, admin: Admin, proposal: admin_pb2.ProposeCommandRequest, approval_id: str
    ) -> admin_pb2.IssueCommandsResponse:
        """What was issued in the end. Proposing once more what was issued answers that, refused nodes among it."""
        from fleet.v1 import admin_pb2

        while True:
            request = admin_pb2.GetApprovalRequest(approval_id=approval_id)
            approval = admin.call(admin.stub.GetApproval, request).approval
            if approval.state == "ISSUED":
                issue = admin.call(admin.stub.ProposeCommand, proposal).issue
                issue.repeated_request = False  # not by this person's doing
                return issue
            if approval.state not in ("PENDING", "APPROVED"):
                by = f" by {approval.closed_by}" if approval.closed_by else ""
                why = f": {approval.reason}" if approval.reason else ""
                raise Refused(f"nothing was issued: it is {approval.state}{by}{why}")
            if self.deadline is not None and time.monotonic() >= self.deadline:
                raise Failed(
                    "too few people signed in that time",
                    hint=f"it goes on waiting: `fleetctl approvals show {_short(approval)}`",
                )
            invocation.sleep(_LOOK_AGAIN_S)


def _short(approval: admin_pb2.ApprovalView) -> str:
    return approval.approval_id[:8]
