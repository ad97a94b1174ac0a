"""Who may call what. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum

from fleet.errors import Reason, Refusal

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}\Z")
_OPERATOR_ID = re.compile(r"op-[0-9a-f]{16}\Z", re.IGNORECASE)
_OTHER_ACTORS = frozenset({"server", "schedule", "product-root", "first-owner"})
"""Actors in the audit that are no operators. The others hold a space or a colon, as no name does."""


class Role(IntEnum):
    """Roles, each with all that the lower ones may."""

    VIEWER = 1
    OPERATOR = 2
    RELEASE = 3
    OWNER = 4

    @property
    def word(self) -> str:
        """As operators write it."""
        return self.name.lower()


ROLES: Mapping[str, Role] = {role.word: role for role in Role}

# Every method of the Admin service, or the server does not start.
NEEDED_ROLE: Mapping[str, Role] = {
    "WhoAmI": Role.VIEWER,
    "CreateOperator": Role.OWNER,
    "ListOperators": Role.OWNER,
    "RevokeOperator": Role.OWNER,
    "RotateOperatorToken": Role.VIEWER,  # one's own; OperatorService.rotate_token looks whose
    "CreateJoinToken": Role.OPERATOR,
    "ListJoinTokens": Role.VIEWER,
    "RevokeJoinToken": Role.OPERATOR,
    "ListEnrollments": Role.VIEWER,
    "DecideEnrollment": Role.OPERATOR,
    "ListNodes": Role.VIEWER,
    "GetNode": Role.VIEWER,
    "WatchNodes": Role.VIEWER,
    "SetNodeState": Role.OPERATOR,
    "AdoptNodes": Role.RELEASE,
    "ReplaceNode": Role.RELEASE,
    "LabelNodes": Role.OPERATOR,
    "RotateNodes": Role.OPERATOR,
    "GetChecklist": Role.VIEWER,
    "TickChecklist": Role.OPERATOR,
    "IssueCommands": Role.OPERATOR,
    "ListCommands": Role.VIEWER,
    "GetCommand": Role.VIEWER,
    "WatchCommands": Role.VIEWER,
    "CancelCommands": Role.OPERATOR,
    "ListReplicas": Role.VIEWER,
    "DrainReplica": Role.RELEASE,
    "DrainNodes": Role.OPERATOR,
    "ResumeNodes": Role.OPERATOR,
    "LatestTelemetry": Role.VIEWER,
    "TelemetryHistory": Role.VIEWER,
    "ExportAudit": Role.VIEWER,
    "ListKeys": Role.VIEWER,
    "EnrollOperatorKey": Role.OPERATOR,
    "ListOperatorKeys": Role.VIEWER,
    "GetOwnerStatements": Role.VIEWER,
    "PutOwnerStatement": Role.OWNER,
    "ProposeCommand": Role.OPERATOR,
    "ListApprovals": Role.VIEWER,
    "GetApproval": Role.VIEWER,
    "SignApproval": Role.OPERATOR,
    "CloseApproval": Role.OPERATOR,
    "PrepareKey": Role.OWNER,
    "ActivateKey": Role.OWNER,
    "RetireKey": Role.OWNER,
    "RevokeKey": Role.OWNER,
    "GetKeyRollout": Role.VIEWER,
    "ListAuthorities": Role.VIEWER,
    "RotateAuthority": Role.OWNER,
    "ListTlsCas": Role.VIEWER,
    "PrepareTlsCa": Role.OWNER,
    "ActivateTlsCa": Role.OWNER,
    "RetireTlsCa": Role.OWNER,
    "RevokeTlsCa": Role.OWNER,
    "CreateRoute": Role.OPERATOR,
    "ListRoutes": Role.VIEWER,
    "GetRoute": Role.VIEWER,
    "ExplainRoute": Role.VIEWER,
    "RouteHistory": Role.VIEWER,
    "WatchRoutes": Role.VIEWER,
    "SetRouteEnabled": Role.OPERATOR,
    "RemoveRoute": Role.OPERATOR,
    "AddRelay": Role.OPERATOR,
    "RemoveRelay": Role.OPERATOR,
    "ListRelays": Role.VIEWER,
}


def needed_role(method: str, request: object = None) -> Role:
    """The least role that may make a call. To put a node out for good takes more than to suspend it.

    Args:
        request: as it came, where the role depends on it.
    """
    if method == "SetNodeState" and getattr(request, "state", "") == "REVOKED":
        return Role.RELEASE
    return NEEDED_ROLE[method]


def parse_role(word: str) -> Role:
    """Role by its word.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    role = ROLES.get(word)
    if role is None:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{word[:40]!r} is no role: choose one of {', '.join(ROLES)}")
    return role


def check_operator_name(name: str) -> None:
    """An operator's name is short and plain, and nobody else's, for it stands in audit rows and signed commands.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not _NAME.match(name):
        raise Refusal(
            Reason.INVALID_ARGUMENT,
            "an operator's name has 1 to 63 letters, digits, dots, dashes, underscores or @, a letter or digit first",
        )
    if name.lower() in _OTHER_ACTORS or _OPERATOR_ID.match(name):
        raise Refusal(
            Reason.INVALID_ARGUMENT,
            f"{name!r} stands for somebody else in the audit, or is an operator id: choose another name",
        )


def authorise(role: Role, needed: Role, what: str) -> None:
    """Check a caller's role.

    Raises:
        Refusal: PERMISSION_DENIED, with the role that would do in `needed_role`.
    """
    if role < needed:
        raise Refusal(
            Reason.PERMISSION_DENIED,
            f"{what} needs the role {needed.word}; yours is {role.word}: ask an owner",
            metadata={"needed_role": needed.word, "role": role.word},
        )
