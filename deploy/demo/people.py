"""A step in which people sign: an owner, two operators, a policy, and an action that no server can order alone."""

import json
from pathlib import Path

from deploy.demo.admin import AdminClient
from deploy.demo.installation import NODES, Installation
from deploy.demo.stage import Stage

ACTION = "exec.run"
_PEOPLE = ("ada", "bob")
_POLICY = """for = "30d"

[[rule]]
actions = "exec.*"
people = 2
roles = ["operator"]
"""
_SHOWN_CHARS = 16


def cosign(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """Owner, grants, policy and pins; then a command that waits for its second signature."""
    folder = here.state / "people"
    folder.mkdir(mode=0o700)
    passphrase = folder / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("a passphrase for this demo\n")
    signing = ["--passphrase-file", here.shown(passphrase)]
    owner_key = here.shown(folder / "owner.key")
    stage.command("fleetctl", "owner", "init", "--owner-key", owner_key, *signing)
    pin = here.fleetctl("owner", "init", "--owner-key", owner_key, *signing)["owner_pin"]
    stage.say("The owner's key stays with the owner: the server never has it, and cannot vouch for it.")
    for name in _PEOPLE:
        _join(stage, here, folder, name, pin, signing)
    for node in NODES:
        here.fleet_node("owner", "pin", pin, "--config", here.shown(here.node_config(node)))
    stage.command("fleet-node", "owner", "pin", pin, "--config", here.shown(here.node_config(NODES[0])))
    stage.say("On each node, by a person: it takes that owner's word about people from now on, and nobody else's.")
    policy = folder / "policy.toml"
    policy.write_text(_POLICY)
    stage.command("fleetctl", "policy", "set", here.shown(policy), *signing)
    here.fleetctl("policy", "set", here.shown(policy), *signing)
    missing = set(NODES)

    def arrived() -> bool:
        missing.difference_update([node for node in NODES if node in missing and _has_policy(here, node)])
        return not missing

    here.wait(arrived, "the policy on every node")
    stage.check(
        not missing,
        "the policy is signed by the owner and in force on every node: exec.* needs 2 operators",
    )
    _ask_and_approve(stage, here, admin, signing)


def _join(stage: Stage, here: Installation, folder: Path, name: str, pin: str, signing: list[str]) -> None:
    token = here.shown(folder / f"{name}.token")
    here.fleetctl("operators", "create", name, "--role", "operator", "--output-file", token)
    profile = _profile(here, name)
    login = ["login", here.admin, "--ca-file", here.shown(here.ca_file), "--token-file", token, "--owner-pin", pin]
    here.fleetctl(*login, profile=profile)
    key = ["operator", "keygen", "--out", here.shown(folder / f"{name}.key"), *signing]
    sha256 = here.fleetctl(*key, profile=profile)["sha256"]
    here.fleetctl("operator", "enroll", "--key", here.shown(folder / f"{name}.key"), *signing, profile=profile)
    here.fleetctl("operator", "grant", name, "--fingerprint", sha256, *signing)
    stage.say(f"{name} made a key of their own ({sha256[:_SHOWN_CHARS]}…), and the owner granted it the role")


def _ask_and_approve(stage: Stage, here: Installation, admin: AdminClient, signing: list[str]) -> None:
    order = ["run", "press-*", ACTION, "--arg", "program=kernel"]
    stage.say("ada, at her own machine:")
    stage.command("fleetctl", *order, "--no-wait", "--yes")
    asked = here.fleetctl(*order, "--no-wait", "--yes", *signing, profile=_profile(here, "ada"))
    approval = asked["approval_id"]
    stage.check(asked["state"] == "PENDING" and not asked["issue_id"], "signed by ada alone: nothing was issued")
    stage.say("bob, at his:")
    stage.command("fleetctl", "approve", approval[:8])
    here.fleetctl("approve", approval, "--yes", *signing, profile=_profile(here, "bob"))
    here.wait(lambda: admin.open_commands() == 0, "the outcomes")
    issue_id = here.fleetctl("approvals", "show", approval)["issue_id"]
    listed = here.fleetctl("commands", "list", "--issue", issue_id)
    stage.table(
        ("node", "action", "ordered by", "state"),
        [(view["node_name"], ACTION, view["actor"], view["state"]) for view in listed],
        whole=("node", "action", "state"),
    )
    stage.check(
        len(listed) == 2 and all(view["state"] == "SUCCEEDED" for view in listed),
        "with the second signature it was issued, verified by both nodes themselves, and ran",
    )


def _has_policy(here: Installation, node: str) -> bool:
    shown = json.loads(here.fleet_node("owner", "show", "--json", "--config", here.shown(here.node_config(node))))
    return bool(shown["policy_version"])


def _profile(here: Installation, name: str) -> Path:
    return here.state / "people" / f"{name}.toml"
