"""Fault: the server is wholly in the wrong hands. It holds every key and every row, and does what it likes.

Must hold (docs/protocol.md, "Intents"): it makes a node run no protected action that people have not signed for that
node, that action and those arguments; none twice; none later than they said; and what it makes up itself counts for
nothing. Everything that people did sign has reached it. And each attempt, and each intent that was used, shows in the
node's audit, also once the server has acknowledged the rows, thrown them away and flooded the node.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleet.envelope import Domain
from fleet.identity import load_node_keys
from fleet.intents import IntentVerdict
from fleet.node_audit import NodeAuditKind
from fleet.people import owner_pin
from fleet.people_signing import make_intent
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet_node.commands import audit_sender
from fleet_node.commands.audit_log import KEEP_ROWS
from fleet_node.commands.audit_reading import read_audit_copy
from fleet_node.enrollment.owner_pin import pin_owner
from tests.fakes.rogue import FINAL_STATES, RogueGateway, RogueStream, command
from tests.integration.installation import Installation, RunningNode
from tests.integration.waiting import eventually
from tests.properties.persons import (
    ADA,
    BEN,
    HOUR_MS,
    PIN,
    STRANGER,
    grant,
    owner_statement,
    policy,
    rule,
    signed_by,
)

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
WORK = "simulated.work"  # the policy protects it
NOOP = "simulated.noop"  # the node's configuration does, and the policy says nothing of it
ARGUMENTS = b'{"latency_ms":1}'
FAR_MS = 4_000_000_000_000
FIRST = {"version": 1, "issued_at_ms": 1, "not_after_ms": FAR_MS}


class Theft:
    """A node of the true installation whose people signed a policy, and the gateway that took it over."""

    def __init__(self, installation: Installation, rogue: RogueGateway, node: RunningNode) -> None:
        self.cluster_id = rogue.trust.cluster_id
        self.now_ms = installation.clock.now_ms()
        self.rogue = rogue
        self.node = node
        self._seq = 0
        self._number = trust_pb2.TrustBundleStatement.FromString(rogue.trust.bundles[-1].statement).number
        self.owners = [owner_statement(cluster_id=self.cluster_id)]
        self.stream: RogueStream
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.used: set[str] = set()

    def policy(self, *rules: trust_pb2.PolicyRule, **changes: Any) -> trust_pb2.Signed:
        return policy(*rules, **({"cluster_id": self.cluster_id} | FIRST | changes))

    def grant(self, *args: Any, **changes: Any) -> trust_pb2.Signed:
        return grant(*args, **({"cluster_id": self.cluster_id, "issued_at_ms": 1, "not_after_ms": FAR_MS} | changes))

    async def tell(self, **said: Any) -> gateway_pb2.BundleApplied:
        """A bundle of the stolen authority, with these words in it."""
        self._number += 1
        statement = trust_pb2.TrustBundleStatement.FromString(self.rogue.trust.bundles[-1].statement)
        for name in ("owners", "policy", "role_grants"):
            statement.ClearField(name)  # type: ignore[arg-type]
        statement.number = self._number
        statement.MergeFrom(trust_pb2.TrustBundleStatement(**said))
        signed = self.rogue.trust.authority.sign(Domain.TRUST_BUNDLE, statement.SerializeToString())
        self.stream.send(trust_bundle=gateway_pb2.TrustBundles(bundles=[signed]))
        applied: gateway_pb2.BundleApplied = await self.stream.wait_control("bundle_applied")
        return applied

    def target(self, **changes: Any) -> trust_pb2.IntentTarget:
        """The node as people name it in an intent."""
        fingerprint = load_node_keys(self.node.folder.path).fingerprint
        said = {"node_id": self.node.node_id, "fingerprint": fingerprint, "name": "n-1"} | changes
        return trust_pb2.IntentTarget(**said)

    def intent(self, action: str = WORK, arguments: bytes = ARGUMENTS, **changes: Any) -> trust_pb2.Signed:
        """What Ada and Ben both want of this node, unless they want something else."""
        targets = changes.pop("targets", [self.target()])
        people = changes.pop("people", (ADA, BEN))
        said = {"issued_at_ms": self.now_ms, "not_after_ms": self.now_ms + HOUR_MS} | changes
        statement = make_intent(self.cluster_id, targets, action=action, arguments=arguments, **said)
        return signed_by(*people, statement=statement)

    async def order(
        self, action: str, arguments: bytes, intent: trust_pb2.Signed | None = None, **changes: Any
    ) -> command_pb2.Report:
        """Order it with the stolen command key."""
        self._seq += 1
        order = command(action, self._seq, arguments, intent=intent, **changes.pop("command", {}))
        self.stream.send_statement([order], **changes)
        report = await self.stream.wait_report(order, FINAL_STATES)
        if report.state == SUCCEEDED and intent is not None:
            self.used.add(trust_pb2.IntentStatement.FromString(intent.statement).intent_id.hex())
        return report

    async def refused(self, *args: Any, **changes: Any) -> str:
        """Order it, and see that it did not run."""
        before = self.node.runs()
        report = await self.order(*args, **changes)
        assert report.state == command_pb2.COMMAND_STATE_REJECTED
        assert self.node.runs() == before
        self.attempts[args[0], report.reason] += 1
        return str(report.reason)

    async def wipe(self) -> None:
        """Acknowledge every row that the node has, and make it write and refuse until it has forgotten those."""
        for number in range(KEEP_ROWS + 50):
            self.stream.send(drain=gateway_pb2.DrainNode(drain=number % 2 == 0))
            self.stream.send_statement([], stream_binding=number.to_bytes(32, "big"))
        node = self.node.node
        assert node is not None

        async def forgotten() -> bool:
            rows = await node._journal.query(lambda store: store.audit.after(0))
            self.stream.send(drain=gateway_pb2.DrainNode(drain=not node.commands.hello().drained))
            return rows[0].number > self._newest

        self._newest = await node._journal.query(lambda store: store.audit.number)
        await eventually(forgotten, "the node forgets what was acknowledged")

    async def evidence(self, kind: NodeAuditKind) -> list[Any]:
        """The details of such rows that the node keeps, once its process has ended; all that it kept verifies."""
        await self.node.stop()
        found = read_audit_copy(self.node.folder.journal, self.node.node_id)
        assert found.findings == []
        return [json.loads(row.detail) for row in found.evidence if row.kind == kind]

    async def look(self) -> None:
        """See that every attempt, and every intent that was used, shows on the node."""
        if self.node.node is not None:
            await self.wipe()
        told: Counter[tuple[str, str]] = Counter()
        for row in await self.evidence(NodeAuditKind.PROTECTED_REFUSED):
            told[row["subject"], row["reason"]] += row["count"]
            assert row["actor"] == "rogue"
        assert told == self.attempts
        assert {row["intent_id"] for row in await self.evidence(NodeAuditKind.INTENT_USED)} == self.used

    async def restart(self) -> None:
        """The node's process ends and another begins."""
        streams = len(self.rogue.streams)
        await self.node.stop()
        await self.node.start()
        self.stream = await self.rogue.wait_stream(streams + 1)


@pytest.fixture
async def theft(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Theft]:
    monkeypatch.setattr(audit_sender, "GATHER_S", 0.05)
    async with RogueGateway(installation.stolen()) as rogue:
        node = await installation.enroll("n-1", endpoints=(rogue.endpoint,), protected=(NOOP,))
        pin_owner(node.folder.owner_pin, PIN)
        theft = Theft(installation, rogue, node)
        await node.start()
        theft.stream = await rogue.wait_stream()
        people = [theft.grant(ADA, "ada"), theft.grant(BEN, "ben")]
        await theft.tell(owners=theft.owners, policy=theft.policy(rule(WORK)), role_grants=people)
        yield theft
        await theft.look()


async def test_what_people_signed_runs_once(theft: Theft) -> None:
    approved = theft.intent()
    assert (await theft.order(WORK, ARGUMENTS, approved)).state == SUCCEEDED
    assert sum(theft.node.runs().values()) == 1
    assert await theft.refused(WORK, ARGUMENTS, approved) == IntentVerdict.INTENT_REPLAYED
    theft.stream.end()
    theft.stream = await theft.rogue.wait_stream(2)
    assert await theft.refused(WORK, ARGUMENTS, approved) == IntentVerdict.INTENT_REPLAYED
    await theft.restart()
    assert await theft.refused(WORK, ARGUMENTS, approved) == IntentVerdict.INTENT_REPLAYED


async def test_nothing_that_it_makes_up_counts(theft: Theft) -> None:
    assert await theft.refused(WORK, ARGUMENTS) == IntentVerdict.INTENT_MISSING
    for key in (theft.rogue.trust.authority, theft.rogue.trust.command_key, STRANGER):
        forged = theft.intent(people=(key, STRANGER))
        assert await theft.refused(WORK, ARGUMENTS, forged) == IntentVerdict.WRONG_SIGNER
    authority = theft.rogue.trust.authority
    applied = await theft.tell(
        owners=[owner_statement(authority, 1, cluster_id=theft.cluster_id), owner_statement(authority, 2)],
        policy=theft.policy(rule("*", 1, ["viewer"]), version=9, owner=authority),
        role_grants=[theft.grant(STRANGER, "eve", "viewer", owner=authority)],
    )
    assert applied.applied  # the bundle is good; what it says of people is not
    assert await theft.refused(WORK, ARGUMENTS, theft.intent(people=(STRANGER,))) == IntentVerdict.WRONG_SIGNER
    assert await theft.refused(WORK, ARGUMENTS, theft.intent(people=(ADA,))) == IntentVerdict.NOT_ENOUGH_SIGNERS


async def test_words_that_it_forges_stand_in_the_nodes_audit(theft: Theft) -> None:
    forged = theft.grant(STRANGER, "eve", owner=STRANGER)
    for _ in range(3):
        await theft.tell(policy=theft.policy(rule("*", 1, ["viewer"]), version=9, owner=STRANGER), role_grants=[forged])
    await theft.wipe()
    refused = await theft.evidence(NodeAuditKind.PEOPLE_REFUSED)
    assert [(row["reason"], row["count"]) for row in refused] == [("WRONG_SIGNER", 1), ("WRONG_SIGNER", 5)]
    (taken,) = await theft.evidence(NodeAuditKind.PEOPLE_TAKEN)
    assert (taken["owner"], taken["policy"], taken["roles"]) == (1, 1, 2)


async def test_it_changes_neither_targets_nor_action_nor_arguments(theft: Theft) -> None:
    meant_for_another = theft.intent(targets=[theft.target(node_id="nd-other", fingerprint=bytes(20))])
    assert await theft.refused(WORK, ARGUMENTS, meant_for_another) == IntentVerdict.INTENT_WRONG_TARGET
    widened = trust_pb2.IntentStatement.FromString(meant_for_another.statement)
    widened.targets.append(theft.target())
    spoilt = trust_pb2.Signed(statement=widened.SerializeToString(), signatures=meant_for_another.signatures)
    assert await theft.refused(WORK, ARGUMENTS, spoilt) == IntentVerdict.BAD_SIGNATURE
    approved = theft.intent()
    assert await theft.refused(WORK, b'{"latency_ms":2}', approved) == IntentVerdict.INTENT_WRONG_ARGUMENTS
    assert await theft.refused(WORK, b'{ "latency_ms":1}', approved) == IntentVerdict.INTENT_WRONG_ARGUMENTS
    other = theft.intent(NOOP)
    assert await theft.refused(WORK, ARGUMENTS, other) == IntentVerdict.INTENT_WRONG_ACTION
    assert (await theft.order(WORK, ARGUMENTS, approved)).state == SUCCEEDED  # none of it used the intent up


async def test_it_gives_no_node_to_people_by_the_name_of_another(theft: Theft) -> None:
    """Who ran `fleetctl run pump-1` was given this node's id and fingerprint, and signed what was shown."""
    swapped = theft.intent(targets=[theft.target(name="pump-1")])
    assert await theft.refused(WORK, ARGUMENTS, swapped) == IntentVerdict.INTENT_WRONG_TARGET
    await theft.restart()
    assert await theft.refused(WORK, ARGUMENTS, swapped) == IntentVerdict.INTENT_WRONG_TARGET
    both = theft.intent(targets=[theft.target(name="pump-1"), theft.target(node_id="nd-other", fingerprint=bytes(20))])
    assert await theft.refused(WORK, ARGUMENTS, both) == IntentVerdict.INTENT_WRONG_TARGET


async def test_an_old_policy_and_a_withheld_one_free_nothing(theft: Theft) -> None:
    stricter = theft.policy(rule(WORK, 3), version=2)
    await theft.tell(policy=stricter)
    assert await theft.refused(WORK, ARGUMENTS, theft.intent()) == IntentVerdict.NOT_ENOUGH_SIGNERS
    await theft.tell(policy=theft.policy(rule(WORK)))
    assert await theft.refused(WORK, ARGUMENTS, theft.intent()) == IntentVerdict.NOT_ENOUGH_SIGNERS
    await theft.tell()
    await theft.restart()
    assert await theft.refused(WORK, ARGUMENTS, theft.intent()) == IntentVerdict.NOT_ENOUGH_SIGNERS
    assert await theft.refused(WORK, ARGUMENTS) == IntentVerdict.INTENT_MISSING


async def test_what_it_withholds_after_another_owner_is_pinned_frees_nothing(theft: Theft) -> None:
    node = theft.node.node
    assert node is not None
    for pin in (owner_pin(STRANGER.public_key), PIN):
        pin_owner(theft.node.folder.owner_pin, pin)
        await node.trust.pin_owner(pin)
        await theft.tell()
        assert await theft.refused(WORK, ARGUMENTS) == IntentVerdict.NO_POLICY
    await theft.restart()
    assert await theft.refused(WORK, ARGUMENTS) == IntentVerdict.NO_POLICY


async def test_a_role_that_was_taken_away_stays_away(theft: Theft) -> None:
    await theft.tell(role_grants=[theft.grant(BEN, "ben", issued_at_ms=2, not_after_ms=2)])
    await theft.tell(role_grants=[theft.grant(BEN, "ben")])
    assert await theft.refused(WORK, ARGUMENTS, theft.intent()) == IntentVerdict.GRANT_EXPIRED


async def test_turning_its_clock_back_keeps_nothing_alive(theft: Theft) -> None:
    ended = theft.intent(issued_at_ms=theft.now_ms - 2 * HOUR_MS, not_after_ms=theft.now_ms - HOUR_MS)
    past_ms = theft.now_ms - 2 * HOUR_MS
    theft.rogue._welcome["server_time_ms"] = past_ms
    await theft.restart()
    assert await theft.refused(WORK, ARGUMENTS, ended, signed_at_ms=past_ms) == IntentVerdict.INTENT_EXPIRED


async def test_what_the_node_protects_itself_needs_a_rule(theft: Theft) -> None:
    actions = [action.action for driver in theft.stream.hello.drivers for action in driver.actions if action.protected]
    assert actions == [NOOP]
    assert await theft.refused(NOOP, b"{}", theft.intent(NOOP, b"{}")) == IntentVerdict.NO_RULE
    await theft.tell(policy=theft.policy(rule(WORK), rule(NOOP, 1), version=2))
    assert (await theft.order(NOOP, b"{}", theft.intent(NOOP, b"{}", people=(ADA,)))).state == SUCCEEDED
