"""A cluster with an owner, people with keys and roles, a policy, and nodes that offer a protected action."""

import os
from dataclasses import dataclass, field
from typing import Any

from fleet import people_signing
from fleet.envelope import Domain, Signer
from fleet.metrics import Registry
from fleet.secrets import Secret
from fleet.v1 import admin_pb2, gateway_pb2, trust_pb2
from fleet_server.approvals.service import ApprovalService
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.commands.service import CommandService, PendingCommand
from fleet_server.database.engine import Database, sql
from fleet_server.database.wakeup import Wakeup
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from tests.fakes.clock import MockClock
from tests.fakes.streams import take_stream

SECRETS = Secrets(Secret(bytes(32)))
ACTION = "press.stop"
ARGUMENTS = b'{"line": 2}'
DAY_MS = 24 * 3600 * 1000


@dataclass
class Plant:
    """The rooms, and the keys of the people."""

    database: Database
    clock: MockClock
    audit: AuditService
    trust: TrustService
    nodes: NodeService
    commands: CommandService
    approvals: ApprovalService
    owner: Signer = field(default_factory=Signer.generate)
    ada: Signer = field(default_factory=Signer.generate)
    bob: Signer = field(default_factory=Signer.generate)
    revoked: set[str] = field(default_factory=set)
    """Operators who may order nothing any more."""

    # -- what owners sign --------------------------------------------------------------------------------------------
    async def put(self, **statement: trust_pb2.Signed) -> None:
        await self.trust.people.put("owner", admin_pb2.PutOwnerStatementRequest(**statement))

    async def name_owner(self) -> None:
        now_ms = self.clock.now_ms()
        signed = people_signing.sign_owner(self.trust.cluster_id, self.owner, generation=1, issued_at_ms=now_ms)
        await self.put(owner=signed)

    def grant(self, name: str, key: Signer, role: str = "operator", days: int = 90) -> trust_pb2.Signed:
        now_ms = self.clock.now_ms()
        return people_signing.sign_grant(
            self.owner,
            trust_pb2.RoleGrantStatement(
                cluster_id=self.trust.cluster_id,
                operator_key=key.public_key,
                operator_name=name,
                role=role,
                issued_at_ms=now_ms,
                not_after_ms=now_ms + days * DAY_MS,
            ),
        )

    def policy(self, required: int = 2, version: int = 1, signer: Signer | None = None) -> trust_pb2.Signed:
        now_ms = self.clock.now_ms()
        return people_signing.sign_policy(
            signer or self.owner,
            trust_pb2.PolicyStatement(
                cluster_id=self.trust.cluster_id,
                version=version,
                rules=[trust_pb2.PolicyRule(action_glob="press.*", required=required, roles=["operator"])],
                issued_at_ms=now_ms,
                not_after_ms=now_ms + 30 * DAY_MS,
            ),
        )

    async def settle_people(self, required: int = 2) -> None:
        """Owner, two operators, policy."""
        await self.name_owner()
        await self.put(role_grant=self.grant("ada", self.ada))
        await self.put(role_grant=self.grant("bob", self.bob))
        await self.put(policy=self.policy(required))

    async def another_replica(self) -> ApprovalService:
        """The same rooms in another process, as far as what each keeps in memory goes."""
        return (await _rooms(self.database, self.clock, "r2")).approvals

    # -- nodes and intents -------------------------------------------------------------------------------------------
    async def add_node(self, name: str, *, protected: bool = True, action: str = ACTION) -> NodeRecord:
        descriptor = gateway_pb2.ActionDescriptor(action=action, arguments_schema=b"{}", protected=protected)
        hello = gateway_pb2.HelloBody(drivers=[gateway_pb2.DriverDescriptor(name="press", actions=[descriptor])])

        def work(tx: Any) -> NodeRecord:
            record = self.nodes.create(
                tx,
                cluster_id=self.trust.cluster_id,
                name=name,
                site="",
                identity_key=os.urandom(32),
                sealing_key=os.urandom(32),
                labels={},
            )
            self.nodes.save_profiles(tx, {record.node_id: hello})
            return record

        return await self.database.write(work)

    def intent(self, *nodes: NodeRecord, minutes: int = 60, **changes: Any) -> trust_pb2.IntentStatement:
        now_ms = self.clock.now_ms()
        made = people_signing.make_intent(
            self.trust.cluster_id,
            [
                trust_pb2.IntentTarget(node_id=node.node_id, name=node.name, fingerprint=node.fingerprint)
                for node in nodes
            ],
            action=ACTION,
            arguments=ARGUMENTS,
            issued_at_ms=now_ms,
            not_after_ms=now_ms + minutes * 60_000,
        )
        made.MergeFrom(trust_pb2.IntentStatement(**changes))
        return made

    def proposal(
        self, intent: trust_pb2.IntentStatement, *signers: Signer, arguments: bytes = ARGUMENTS, ttl_s: int = 300
    ) -> admin_pb2.ProposeCommandRequest:
        signed = trust_pb2.Signed(statement=intent.SerializeToString(deterministic=True))
        for signer in signers:
            signer.add(signed, Domain.INTENT)
        spec = admin_pb2.CommandSpec(action=ACTION, arguments=arguments, intent=signed)
        return admin_pb2.ProposeCommandRequest(command=spec, ttl_s=ttl_s)

    def signature(self, view: admin_pb2.ApprovalView, signer: Signer) -> trust_pb2.Signature:
        value = signer.sign_value(Domain.INTENT, view.command.intent.statement)
        return trust_pb2.Signature(key_id=signer.key_id, value=value)

    # -- what came of it ---------------------------------------------------------------------------------------------
    async def claim(self, node: NodeRecord) -> list[PendingCommand]:
        """What a stream of the node would be given to sign."""
        epoch = await self.database.write(
            lambda tx: take_stream(
                self.nodes, tx, node.node_id, stream_id=f"s{os.urandom(4).hex()}", replica_id="r1", last_accepted_seq=0
            )
        )
        return await self.commands.claim_pending(node.node_id, epoch, after_seq=0, limit=32)

    async def kinds(self) -> list[str]:
        return [row.kind for row in (await self.audit.page(AuditCursor())).rows]

    async def tamper(self, text: str, *fields: Any) -> None:
        await self.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), fields))


async def build(database: Database, clock: MockClock) -> Plant:
    """A new cluster."""
    return await _rooms(database, clock, "r1")


async def _rooms(database: Database, clock: MockClock, replica_id: str) -> Plant:
    wakeup, metrics = Wakeup(), ServerMetrics(Registry())
    audit = AuditService(database=database, clock=clock, wakeup=wakeup, writer=replica_id, row_mac=SECRETS.row_mac)
    revoked: set[str] = set()
    trust = TrustService(
        database=database, secrets=SECRETS, clock=clock, audit=audit, wakeup=wakeup, cluster_name="main"
    )
    await trust.create_cluster()
    await trust.load()
    await trust.publish_bundle(["gateway.example:7443"])
    nodes = NodeService(
        database=database,
        clock=clock,
        wakeup=wakeup,
        audit=audit,
        row_mac=SECRETS.row_mac("nodes"),
        replica_id=replica_id,
    )
    commands = CommandService(
        database=database,
        clock=clock,
        wakeup=wakeup,
        audit=audit,
        nodes=nodes,
        metrics=metrics.commands,
        row_mac=SECRETS.row_mac("commands"),
        cluster_id=trust.cluster_id,
        policy_covers=trust.people.policy_covers,
    )
    nodes.count_open_with(commands.open_counts)
    await commands.load()
    approvals = ApprovalService(
        database=database,
        clock=clock,
        audit=audit,
        trust=trust,
        commands=commands,
        may_order=lambda conn, name: name not in revoked,
        row_mac=SECRETS.row_mac("approvals"),
    )
    return Plant(database, clock, audit, trust, nodes, commands, approvals, revoked=revoked)
