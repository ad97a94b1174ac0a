"""Any replica takes any operator's call, and a node's steps to its stream may each be taken at another one."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.message import Message
from sqlalchemy import Connection

from fleet import people_signing
from fleet.envelope import Signer
from fleet.errors import Reason, Refusal
from fleet.key_possession import sign_possession
from fleet.v1 import admin_pb2, gateway_pb2, trust_pb2
from tests.integration.anywhere import Matrix
from tests.integration.anywhere_nodes import BEGINNING, ENDING
from tests.integration.anywhere_routes import ROUTES
from tests.integration.anywhere_trust import TRUST
from tests.integration.handmade import HandmadeNode
from tests.integration.installation import RunningNode
from tests.integration.several import several

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


async def test_every_call_of_an_operator_at_a_replica_that_holds_no_stream(
    tmp_path: Path, postgres: "PostgresServer"
) -> None:
    async with several(tmp_path, postgres, ["replica-a", "replica-b"]) as (here, there):
        matrix = Matrix(here, there)
        for each in (*BEGINNING, *ROUTES, *TRUST, *ENDING):
            try:
                await each(matrix)
            except BaseException as error:
                error.add_note(f"in the case {each.__name__}")
                raise
    methods = {method.name for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods}
    assert methods == matrix.called, (
        "a new call needs a case in `anywhere_nodes`, `anywhere_routes` or `anywhere_trust`"
    )


async def test_each_step_of_a_node_to_its_stream_at_another_replica(tmp_path: Path, postgres: "PostgresServer") -> None:
    """A balancer that ends TLS sends each call where it likes."""
    async with several(tmp_path, postgres, ["replica-a", "replica-b"]) as (here, there):
        token = await there.join_token(auto_approve=False)
        node = RunningNode(tmp_path / "n-1", "n-1", here.clock, endpoints=(here.gateway,))
        node.folder.lock()
        applied = await node.enrollment().apply(token, node.applicant)
        (waiting,) = (await there.owner.ask("ListEnrollments", admin_pb2.ListEnrollmentsRequest())).enrollments
        decision = admin_pb2.DecideEnrollmentRequest(enrollment_id=waiting.enrollment_id, approve=True)
        await there.owner.ask("DecideEnrollment", decision)
        node.membership = await node.enrollment().wait_decided(applied)

        async with HandmadeNode(here, node) as one, HandmadeNode(there, node) as other:
            challenge = await one.begin()
            answer = other.answer(challenge)
            session = await other.complete(*answer)
            with pytest.raises(Refusal) as refused:
                await one.complete(*answer)
            assert refused.value.reason is Reason.CHALLENGE_EXPIRED, "it was answered at the other replica"

            hello = gateway_pb2.NodeFrame(hello=one.hello(session))
            async with one.connect(session) as stream, other.connect(session) as again:
                await asyncio.gather(stream.send(hello), again.send(hello))
                both = await asyncio.gather(stream.wait_welcome(), again.wait_welcome(), return_exceptions=True)
                assert sorted(type(each).__name__ for each in both) == ["NoneType", "Refusal"]
                (lost,) = [each for each in both if isinstance(each, Refusal)]
                assert lost.reason is Reason.TOKEN_USED
                streams = [len(each.server.streams) for each in (here, there)]
                assert sorted(streams) == [0, 1]

            await there.owner.ask("RotateAuthority", admin_pb2.RotateAuthorityRequest(from_generation=1, reason="test"))
            held = trust_pb2.GetTrustChainRequest(cluster_id=one.me.cluster_id, from_generation=1, from_number=1)
            chain = (await one.ask("GetTrustChain", held)).bundles
            newest = trust_pb2.TrustBundleStatement.FromString(chain[-1].statement)
            assert newest.generation == 2


async def test_the_same_call_at_both_at_the_same_moment_counts_once_or_is_refused_with_a_reason(
    tmp_path: Path, postgres: "PostgresServer"
) -> None:
    async with several(tmp_path, postgres, ["replica-a", "replica-b"]) as both:
        node = await both[0].add_node("n-1", endpoints=(both[0].gateway,))
        await node.stop()
        trust, now_ms = both[0].server.trust, both[0].clock.now_ms()
        person, owner = Signer.generate(), Signer.generate()
        possession = sign_possession(person, cluster_id=trust.cluster_id, operator="owner", now_ms=now_ms)
        statement = people_signing.sign_owner(trust.cluster_id, owner, generation=1, issued_at_ms=now_ms)
        selector = admin_pb2.Selector(patterns=["n-1"])
        calls: list[tuple[str, Message]] = [
            ("CreateOperator", admin_pb2.CreateOperatorRequest(name="ada", role="operator")),
            ("RotateOperatorToken", admin_pb2.RotateOperatorTokenRequest(operator="ada")),
            ("EnrollOperatorKey", admin_pb2.EnrollOperatorKeyRequest(signed=possession)),
            ("PutOwnerStatement", admin_pb2.PutOwnerStatementRequest(owner=statement)),
            ("PrepareKey", admin_pb2.PrepareKeyRequest()),
            ("PrepareTlsCa", admin_pb2.PrepareTlsCaRequest()),
            ("RotateAuthority", admin_pb2.RotateAuthorityRequest(from_generation=1, reason="yearly")),
            ("LabelNodes", admin_pb2.LabelNodesRequest(selector=selector, set={"role": "web"})),
            ("RotateNodes", admin_pb2.RotateNodesRequest(selector=selector, api_key=True)),
            ("SetNodeState", admin_pb2.SetNodeStateRequest(selector=selector, state="REVOKED", reason="stolen")),
            ("RevokeOperator", admin_pb2.RevokeOperatorRequest(operator="ada")),
        ]
        for method, request in calls:
            answers = await asyncio.gather(*(each.owner.ask(method, request) for each in both), return_exceptions=True)
            refused = [each for each in answers if isinstance(each, BaseException)]
            assert len(refused) < len(both), f"{method}: {refused}"
            for each in refused:
                assert isinstance(each, Refusal), method
                assert each.reason is not Reason.INTERNAL, method
            if method == "RotateNodes":
                assert await both[0].server.database.read(live_api_keys) == 2, "never a third"


def live_api_keys(conn: Connection) -> int:
    """Of all nodes."""
    return int(conn.exec_driver_sql("SELECT count(*) FROM api_keys WHERE revoked_at_ms = 0").scalar() or 0)
