"""Calls about keys, TLS CAs, people and the audit, at a replica that holds no stream."""

import asyncio
import json
from typing import Any

import pytest

from fleet import people_signing
from fleet.envelope import Domain, Signer, key_id
from fleet.errors import Reason, Refusal
from fleet.key_possession import sign_possession
from fleet.v1 import admin_pb2 as pb
from fleet.v1 import trust_pb2
from tests.fakes.audit_export import verify_export
from tests.integration.anywhere import ACTION, DAY_MS, Case, Matrix, only, runs
from tests.integration.waiting import eventually


async def keys(m: Matrix) -> None:
    prepared = [(await m.call("PrepareKey", pb.PrepareKeyRequest())).key.key_id.hex()]
    await m.same("ListKeys", pb.ListKeysRequest())

    async def complete() -> bool:
        rollout = await m.same("GetKeyRollout", pb.GetKeyRolloutRequest())
        return all(key.complete for key in rollout.keys)

    await eventually(complete, "both nodes hold it")
    former = (await m.same("ListKeys", pb.ListKeysRequest())).command_keys[0].key_id.hex()
    await m.call("ActivateKey", pb.ActivateKeyRequest(key=prepared[0]))
    await m.same("ListKeys", pb.ListKeysRequest())
    await m.call("RevokeKey", pb.RevokeKeyRequest(key=former, reason="leaked"))
    await m.same("ListKeys", pb.ListKeysRequest())
    prepared.append((await m.call("PrepareKey", pb.PrepareKeyRequest(site="berlin"))).key.key_id.hex())
    await m.call("ActivateKey", pb.ActivateKeyRequest(key=prepared[1], override_reason="nobody is there"))
    await m.call("RetireKey", pb.RetireKeyRequest(key=prepared[1]))
    await m.same("ListKeys", pb.ListKeysRequest())
    await m.call("RotateAuthority", pb.RotateAuthorityRequest(from_generation=1, reason="yearly"))
    assert len((await m.same("ListAuthorities", pb.ListAuthoritiesRequest())).authorities) == 2
    await runs(m)


async def tls(m: Matrix) -> None:
    made = (await m.call("PrepareTlsCa", pb.PrepareTlsCaRequest())).ca
    await m.same("ListTlsCas", pb.ListTlsCasRequest())

    async def activated() -> Any:
        return await m.call("ActivateTlsCa", pb.ActivateTlsCaRequest(ca=made.sha256.hex()))

    await eventually(activated, "both nodes trust it")
    for each in (m.here, m.there):
        await eventually(lambda each=each: each.server.certificates.ca_der == made.certificate, "it is shown")  # type: ignore[misc]
        each.log_in()
    cas = (await m.same("ListTlsCas", pb.ListTlsCasRequest())).cas
    outgoing = next(ca for ca in cas if ca.sha256 != made.sha256)
    await m.call("RetireTlsCa", pb.RetireTlsCaRequest(ca=outgoing.sha256.hex()))
    await m.same("ListTlsCas", pb.ListTlsCasRequest())
    unwanted = (await m.call("PrepareTlsCa", pb.PrepareTlsCaRequest())).ca
    await m.call("RevokeTlsCa", pb.RevokeTlsCaRequest(ca=unwanted.sha256.hex(), reason="a mistake"))
    await m.same("ListTlsCas", pb.ListTlsCasRequest())
    await runs(m)


async def approvals(m: Matrix) -> None:
    cluster_id, now_ms = m.there.server.trust.cluster_id, m.there.clock.now_ms()
    owner, ada, ben = (Signer.generate() for _ in range(3))
    possession = sign_possession(ada, cluster_id=cluster_id, operator="owner", now_ms=now_ms)
    await m.call("EnrollOperatorKey", pb.EnrollOperatorKeyRequest(signed=possession))
    assert len((await m.same("ListOperatorKeys", pb.ListOperatorKeysRequest())).keys) == 1

    def granted(name: str, person: Signer) -> trust_pb2.Signed:
        statement = trust_pb2.RoleGrantStatement(
            cluster_id=cluster_id,
            operator_key=person.public_key,
            operator_name=name,
            role="operator",
            issued_at_ms=now_ms,
            not_after_ms=now_ms + DAY_MS,
        )
        return people_signing.sign_grant(owner, statement)

    wanted = trust_pb2.PolicyStatement(
        cluster_id=cluster_id,
        version=1,
        rules=[trust_pb2.PolicyRule(action_glob=ACTION, required=2, roles=["operator"])],
        issued_at_ms=now_ms,
        not_after_ms=now_ms + DAY_MS,
    )
    for statement in (
        {"owner": people_signing.sign_owner(cluster_id, owner, generation=1, issued_at_ms=now_ms)},
        {"role_grant": granted("ada", ada)},
        {"role_grant": granted("ben", ben)},
        {"policy": people_signing.sign_policy(owner, wanted)},
    ):
        await m.call("PutOwnerStatement", pb.PutOwnerStatementRequest(**statement))
        await m.same("GetOwnerStatements", pb.GetOwnerStatementsRequest())
    with pytest.raises(Refusal) as refused:
        await m.call("IssueCommands", pb.IssueCommandsRequest(selector=only("n-1"), commands=[work()]))
    assert refused.value.reason is Reason.INTENT_REQUIRED

    ended = await propose(m, ada, now_ms)
    await m.call("CloseApproval", pb.CloseApprovalRequest(approval_id=ended.approval_id, withdraw=True, reason="no"))
    wished = await propose(m, ada, now_ms)
    await m.same("ListApprovals", pb.ListApprovalsRequest())
    shown = (await m.same("GetApproval", pb.GetApprovalRequest(approval_id=wished.approval_id))).approval
    value = ben.sign_value(Domain.INTENT, shown.command.intent.statement)
    signature = trust_pb2.Signature(key_id=ben.key_id, value=value)
    request = pb.SignApprovalRequest(approval_id=wished.approval_id, signature=signature)
    both = m.call("SignApproval", request), m.here.owner.ask("SignApproval", request)
    for answer in await asyncio.gather(*both, return_exceptions=True):
        assert not isinstance(answer, Refusal) or answer.reason is Reason.ALREADY_DECIDED
    issued = (await m.same("GetApproval", pb.GetApprovalRequest(approval_id=wished.approval_id))).approval.issue_id
    listed = (await m.same("ListCommands", pb.ListCommandsRequest(node="n-1"))).commands
    assert {view.issue_id for view in listed if view.arguments == work().arguments} == {issued}


def work() -> pb.CommandSpec:
    """What the policy protects."""
    return pb.CommandSpec(action=ACTION, arguments=json.dumps({"latency_ms": 1}).encode())


async def propose(m: Matrix, person: Signer, now_ms: int) -> pb.ApprovalView:
    """A proposal that waits for a second person."""
    node = await m.there.server.nodes.get("n-1")
    spec = work()
    intent = people_signing.make_intent(
        m.there.server.trust.cluster_id,
        [trust_pb2.IntentTarget(node_id=node.node_id, name=node.name, fingerprint=node.fingerprint)],
        action=ACTION,
        arguments=spec.arguments,
        issued_at_ms=now_ms,
        not_after_ms=now_ms + 3_600_000,
    )
    spec.intent.CopyFrom(people_signing.sign_intent(person, intent))
    answer: pb.ApprovalView = (await m.call("ProposeCommand", pb.ProposeCommandRequest(command=spec))).approval
    return answer


async def trail(m: Matrix) -> None:
    async for page in m.follow("ExportAudit", pb.ExportAuditRequest(follow=True, last=1)):
        if any(entry.writer == "replica-a" and entry.kind == "operator.created" for entry in page.entries):
            break
        if page.entries and "bob" not in m.people:
            m.people["bob"] = Signer.generate()
            await m.here.operator("bob", "viewer")
    trust = m.there.server.trust
    authorities = (await m.call("ListAuthorities", pb.ListAuthoritiesRequest())).authorities
    verifying = {key_id(each.public_key): each.public_key for each in authorities}
    summary = await verify_export(m.there.server.audit, trust.cluster_id, verifying)
    assert summary.writers >= len(m.nodes) + 2, "of each replica, and of each node"


TRUST: tuple[Case, ...] = (keys, tls, approvals, trail)
