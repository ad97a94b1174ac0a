"""What a shell may put in place of a word: names that the profile and the server know.

A person waits with a finger on the key, so the server is asked once and briefly; whatever goes wrong, nothing is
offered and nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from fleet_server.cli.invocation import Invocation

if TYPE_CHECKING:
    from fleet_server.cli.connection import Admin

MOST = 100
_MOST_ROUTES = 1000
_TIMEOUT_S = 2.0

Completion = Callable[[click.Context, click.Parameter, str], list[str]]


def _of_server(names: Callable[[Admin, str], Iterable[str]]) -> Completion:
    """Turn a question to the server into a completion."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        from fleet_server.cli.failures import Failure

        try:
            with _connect(ctx) as admin:
                return sorted({name for name in names(admin, incomplete) if name.startswith(incomplete)})
        except Failure:
            return []

    return complete


def _connect(ctx: click.Context) -> Admin:
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.failures import Unreachable

    def wait(_seconds: float) -> None:
        raise Unreachable("a busy server is not waited for")

    context = ctx.find_root().ensure_object(Invocation).context()
    return Admin(context, say=lambda _: None, sleep=wait)


def _nodes(admin: Admin, incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2

    patterns = [f"{incomplete}*"] if incomplete else []
    request = admin_pb2.ListNodesRequest(selector=admin_pb2.Selector(patterns=patterns), page=admin_pb2.Page(size=MOST))
    return [node.name for node in admin.call(admin.stub.ListNodes, request, timeout_s=_TIMEOUT_S).nodes]


def _operators(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2

    answer = admin.call(admin.stub.ListOperators, admin_pb2.ListOperatorsRequest(), timeout_s=_TIMEOUT_S)
    return [operator.name for operator in answer.operators if not operator.revoked_at_ms]


def _replicas(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2

    answer = admin.call(admin.stub.ListReplicas, admin_pb2.ListReplicasRequest(), timeout_s=_TIMEOUT_S)
    return [replica.replica_id for replica in answer.replicas]


def _join_tokens(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2

    request = admin_pb2.ListJoinTokensRequest(page=admin_pb2.Page(size=MOST))
    answer = admin.call(admin.stub.ListJoinTokens, request, timeout_s=_TIMEOUT_S)
    return [token.token_id for token in answer.join_tokens if token.state == "ACTIVE"]


def _enrollments(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2, enrollment_pb2

    request = admin_pb2.ListEnrollmentsRequest(
        state=enrollment_pb2.ENROLLMENT_STATE_PENDING, page=admin_pb2.Page(size=MOST)
    )
    answer = admin.call(admin.stub.ListEnrollments, request, timeout_s=_TIMEOUT_S)
    return [enrollment.name for enrollment in answer.enrollments]


def _command_keys(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2, trust_pb2

    answer = admin.call(admin.stub.ListKeys, admin_pb2.ListKeysRequest(), timeout_s=_TIMEOUT_S)
    return [key.key_id.hex() for key in answer.command_keys if key.phase != trust_pb2.KEY_PHASE_REVOKED]


def _tls_cas(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2

    ended = (admin_pb2.TLS_CA_PHASE_RETIRED, admin_pb2.TLS_CA_PHASE_REVOKED)
    answer = admin.call(admin.stub.ListTlsCas, admin_pb2.ListTlsCasRequest(), timeout_s=_TIMEOUT_S)
    return [ca.sha256.hex() for ca in answer.cas if ca.phase not in ended]


def _approvals(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2

    answer = admin.call(admin.stub.ListApprovals, admin_pb2.ListApprovalsRequest(), timeout_s=_TIMEOUT_S)
    return [approval.approval_id for approval in answer.approvals]


def _routes(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2, admin_route_pb2

    request = admin_route_pb2.ListRoutesRequest(page=admin_pb2.Page(size=_MOST_ROUTES))
    return [route.name for route in admin.call(admin.stub.ListRoutes, request, timeout_s=_TIMEOUT_S).routes]


def _relays(admin: Admin, _incomplete: str) -> Iterable[str]:
    from fleet.v1 import admin_route_pb2

    answer = admin.call(admin.stub.ListRelays, admin_route_pb2.ListRelaysRequest(), timeout_s=_TIMEOUT_S)
    return [relay.name for relay in answer.relays]


node = _of_server(_nodes)
operator = _of_server(_operators)
replica = _of_server(_replicas)
join_token = _of_server(_join_tokens)
enrollment = _of_server(_enrollments)
command_key = _of_server(_command_keys)
tls_ca = _of_server(_tls_cas)
approval = _of_server(_approvals)
route = _of_server(_routes)
relay = _of_server(_relays)


def context(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """A context of the profile."""
    from fleet_server.cli.failures import Failure

    try:
        known = ctx.find_root().ensure_object(Invocation).profile_file().load().contexts
    except Failure:
        return []
    return sorted(name for name in known if name.startswith(incomplete))


def target_or_action(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For `run`: the first word is a node; what follows may be a further one, or an action of the first."""
    said: tuple[str, ...] = ctx.params.get(param.name or "") or ()
    nodes = [name for name in node(ctx, param, incomplete) if name not in said]
    if not said:
        return nodes
    return [*_of_server(lambda admin, _: _actions(admin, said[0]))(ctx, param, incomplete), *nodes]


def _actions(admin: Admin, target: str) -> Iterable[str]:
    from fleet.v1 import admin_pb2

    request = admin_pb2.ListNodesRequest(selector=admin_pb2.Selector(patterns=[target]), page=admin_pb2.Page(size=1))
    for found in admin.call(admin.stub.ListNodes, request, timeout_s=_TIMEOUT_S).nodes:
        answer = admin.call(admin.stub.GetNode, admin_pb2.GetNodeRequest(node=found.node_id), timeout_s=_TIMEOUT_S)
        return [action.action for driver in answer.drivers for action in driver.actions]
    return []
