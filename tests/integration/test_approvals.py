"""People sign protected commands with fleetctl; a real node runs them once, and takes the server's word for nothing."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import Refusal
from fleet.key_file import create_key_file, read_public_key
from fleet.secrets import Secret
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.commands import protection
from tests.integration.command_line import Fleetctl, fork_fleetctl
from tests.integration.installation import Installation, RunningNode

ACTION = "simulated.work"
PASSPHRASE = "a passphrase of these tests"
POLICY = """
for = "30d"

[[rule]]
actions = "simulated.work"
people = 2
roles = ["operator"]
"""


def cheap_key(path: Path) -> str:
    """A new key file whose passphrase costs little to try."""
    create_key_file(path, lambda: Secret(PASSPHRASE), scrypt_cost=2**10)
    return str(path)


@dataclass
class Crew:
    """An owner and two operators, each with a key, at a server with a policy and two nodes that pin the owner."""

    installation: Installation
    folder: Path
    owner: Fleetctl
    operators: dict[str, Fleetctl] = field(default_factory=dict)
    nodes: list[RunningNode] = field(default_factory=list)

    @property
    def passphrase(self) -> tuple[str, str]:
        return "--passphrase-file", str(self.folder / "passphrase")

    async def settle(self) -> None:
        (self.folder / "passphrase").write_text(PASSPHRASE + "\n")
        (self.folder / "passphrase").chmod(0o600)
        (self.folder / "policy.toml").write_text(POLICY)
        key = cheap_key(self.folder / "owner.key")
        init = await ok(self.owner, "owner", "init", "--owner-key", key, *self.passphrase, "-o", "json")
        await asyncio.gather(*(self._join(name, json.loads(init)["owner_pin"]) for name in ("ada", "bob")))
        await ok(self.owner, "policy", "set", str(self.folder / "policy.toml"), *self.passphrase)
        token = await ok(self.owner, "join-token", "create", "--auto-approve", "--uses", "5")
        for name in ("n-1", "n-2"):
            node = await self.installation.enroll(name, token.strip())
            await node.start()
            self.nodes.append(node)

    async def _join(self, name: str, owner_pin: str) -> None:
        request = admin_pb2.CreateOperatorRequest(name=name, role="operator")
        token = (await self.installation.owner.ask("CreateOperator", request)).token
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        ctl = self.operators[name] = Fleetctl(self.installation, folder, token, fork_fleetctl)
        await ctl.login("--owner-pin", owner_pin)
        await ok(ctl, "operator", "enroll", "--key", cheap_key(folder / "operator.key"), *self.passphrase)
        sha256 = hashlib.sha256(read_public_key(folder / "operator.key")).hexdigest()
        await ok(self.owner, "operator", "grant", name, "--fingerprint", sha256, *self.passphrase)

    async def propose(self, *targets: str, arg: str = "latency_ms:=1") -> str:
        """Ada proposes; the approval's id."""
        words = ("run", *targets, ACTION, "--arg", arg, "--no-wait", "--yes", *self.passphrase)
        return (await ok(self.operators["ada"], *words)).strip()

    async def approve(self, name: str, approval_id: str) -> dict[str, Any]:
        words = ("approve", approval_id[:12], "--yes", *self.passphrase, "-o", "json")
        value: dict[str, Any] = json.loads(await ok(self.operators[name], *words))
        return value


async def ok(ctl: Fleetctl, *words: str) -> str:
    code, out, err = await ctl(*words)
    assert code == 0, (words, out, err)
    return out


@pytest.fixture
async def crew(installation: Installation, tmp_path: Path) -> AsyncIterator[Crew]:
    owner = Fleetctl(installation, tmp_path, installation.owner_token, fork_fleetctl)
    await owner.login()
    made = Crew(installation, tmp_path, owner)
    await made.settle()
    yield made


async def test_a_command_that_two_people_signed_runs_once(crew: Crew) -> None:
    operator = crew.installation.owner
    with pytest.raises(Refusal, match="INTENT_REQUIRED"):
        await operator.issue("n-1", action=ACTION)
    approval_id = await crew.propose("n-*")
    listed = json.loads(await ok(crew.operators["bob"], "approvals", "list", "-o", "json"))
    assert [(one["approval_id"], one["signers"], one["state"]) for one in listed] == [(approval_id, ["ada"], "PENDING")]
    assert {target["name"] for target in listed[0]["targets"]} == {"n-1", "n-2"}
    assert (await crew.approve("ada", approval_id))["state"] == "PENDING"  # a person counts once

    code, out, err = await crew.operators["bob"]("approve", approval_id, "--yes", *crew.passphrase)

    assert code == 0, err
    for shown in (ACTION, '{"latency_ms": 1}', "n-1", "n-2", "signed by", "ada"):
        assert shown in err
    shown = json.loads(await ok(crew.owner, "approvals", "show", approval_id, "-o", "json"))
    outcomes = await operator.outcomes(shown["issue_id"])
    assert [(view.state, view.actor) for view in outcomes] == [(command_pb2.COMMAND_STATE_SUCCEEDED, "ada")] * 2
    assert [sum(node.runs().values()) for node in crew.nodes] == [1, 1]
    assert "ISSUED" in out


async def test_a_server_in_the_wrong_hands_makes_no_node_run_a_protected_action(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds every key of the server and its database, and lets everything pass that it should refuse."""
    approval_id = await crew.propose("n-1")
    issue_id = (await crew.approve("bob", approval_id))["issue_id"]
    (first,) = await crew.installation.owner.outcomes(str(issue_id))
    assert first.state == command_pb2.COMMAND_STATE_SUCCEEDED
    alone = await crew.propose("n-1", arg="latency_ms:=2")
    intents = {}
    for name, each in (("signed", approval_id), ("alone", alone)):
        view = await crew.installation.server.approvals.get(each)
        intents[name] = (view.command.intent, view.command.arguments)
    monkeypatch.setattr(protection, "refuse_unsigned", lambda *_: None)
    monkeypatch.setattr(protection, "refuse_unfit", lambda *_, **__: None)
    signed, arguments = intents["signed"]
    attempts = {
        "NO_INTENT": ("n-1", arguments, None),
        "REPLAYED": ("n-1", arguments, signed),
        "OTHER_ARGUMENTS": ("n-1", b'{"latency_ms": 3}', signed),
        "ANOTHER_NODE": ("n-2", arguments, signed),
        "TOO_FEW": ("n-1", intents["alone"][1], intents["alone"][0]),
    }
    said = {}
    for name, (node, given, intent) in attempts.items():
        spec = admin_pb2.CommandSpec(action=ACTION, arguments=given, intent=intent)
        request = admin_pb2.IssueCommandsRequest(selector=admin_pb2.Selector(patterns=[node]), commands=[spec])
        answer = await crew.installation.server.commands.issue("ada", request)
        (view,) = await crew.installation.owner.outcomes(answer.issue_id)
        assert view.state == command_pb2.COMMAND_STATE_REJECTED
        said[name] = view.reason
    assert said == {
        "NO_INTENT": "INTENT_MISSING",
        "REPLAYED": "INTENT_REPLAYED",
        "OTHER_ARGUMENTS": "INTENT_WRONG_ARGUMENTS",
        "ANOTHER_NODE": "INTENT_WRONG_TARGET",
        "TOO_FEW": "NOT_ENOUGH_SIGNERS",
    }
    assert [sum(node.runs().values()) for node in crew.nodes] == [1, 0]


async def test_people_lose_roles_and_owners_change(crew: Crew) -> None:
    ada, bob = crew.operators["ada"], crew.operators["bob"]
    new = cheap_key(crew.folder / "owner-2.key")
    words = ("owner", "rotate", "--new-key", new, "--new-passphrase-file", crew.passphrase[1], "--yes")
    await ok(crew.owner, *words, *crew.passphrase)
    newest = crew.installation.server.trust.bundle.version
    await crew.installation.owner.wait_node(
        "n-1", lambda view: (view.bundle_version.generation, view.bundle_version.number) >= newest
    )
    done = await crew.approve("bob", await crew.propose("n-1"))  # the new owner has signed anew what stood
    (view,) = await crew.installation.owner.outcomes(str(done["issue_id"]))
    assert (view.state, view.reason) == (command_pb2.COMMAND_STATE_SUCCEEDED, "")

    await ok(crew.owner, "operator", "revoke-grant", "bob", "--yes", *crew.passphrase)
    approval_id = await crew.propose("n-1")
    assert (await crew.approve("bob", approval_id))["state"] == "PENDING"
    await ok(bob, "approvals", "reject", approval_id, "--reason", "not now")
    code, _, err = await ada("approve", approval_id, "--yes", *crew.passphrase)
    assert (code, "REJECTED" in err) == (3, True)


async def test_what_was_signed_for_a_nodes_former_keys_is_void_and_for_the_new_ones_it_counts(crew: Crew) -> None:
    node, owner = crew.nodes[0], crew.installation.owner
    before = await owner.node("n-1")
    former = await crew.propose("n-1")
    request = admin_pb2.RotateNodesRequest(selector=admin_pb2.Selector(patterns=["n-1"]), identity=True, sealing=True)
    await owner.ask("RotateNodes", request)
    await owner.wait_node("n-1", lambda view: view.online and view.fingerprint != before.fingerprint)
    await owner.wait_node("n-1", lambda view: not view.rotating)

    code, _, err = await crew.operators["bob"]("approve", former[:12], "--yes", *crew.passphrase)
    assert code != 0, err
    assert not node.runs()

    fresh = await crew.propose("n-1")
    (outcome,) = await owner.outcomes(str((await crew.approve("bob", fresh))["issue_id"]))
    assert outcome.state == command_pb2.COMMAND_STATE_SUCCEEDED
    assert sum(node.runs().values()) == 1
