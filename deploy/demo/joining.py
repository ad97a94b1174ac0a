"""Steps 1 to 3: a server, three nodes that join it by token, fingerprint and approval, and their streams."""

import stat
from pathlib import Path

from deploy.demo.admin import AdminClient
from deploy.demo.installation import NODES, Installation
from deploy.demo.programs import WAIT_S
from deploy.demo.stage import Stage
from fleet.identity import parse_fingerprint, show_fingerprint
from tests.fakes.process import RunningProcess

_FINGERPRINT = r"^\s+((?:[A-Z2-7]{4}-){7}[A-Z2-7]{4})$"
_TOKEN_SHOWN_CHARS = 12
_INIT_LABEL_CELLS = 13


def server(stage: Stage, here: Installation) -> None:
    """`fleet-server init` and `run`, and the first login."""
    stage.command("fleet-server", *here.init_arguments())
    for line in here.init_server():
        stage.say(line[_INIT_LABEL_CELLS:], label=line[:_INIT_LABEL_CELLS])
    stage.command("fleet-server", "run", "--config", here.shown(here.state / "server.toml"))
    here.start_server()
    login = ["login", here.admin, "--ca-file", here.shown(here.ca_file)]
    login += ["--token-file", here.shown(here.owner_token_file)]
    stage.command("fleetctl", *login)
    here.fleetctl(*login)
    me = here.fleetctl("whoami")
    stage.check(me["role"] == "owner", f"logged in as {me['operator']} ({me['role']}) to replica {me['replica_id']}")
    secret = [here.data / "secret.key", here.owner_token_file, here.profile]
    stage.check(all(_private(path) for path in secret), "every file that holds a secret is 0600")


def enrollment(stage: Stage, here: Installation) -> None:
    """Join token, three requests, fingerprints compared, approvals."""
    token = here.shown(here.join_token_file)
    create = ["join-token", "create", "--uses", str(len(NODES)), "--output-file", token]
    stage.command("fleetctl", *create)
    here.fleetctl(*create)
    text = here.join_token_file.read_text().strip()
    stage.say(f"{text[:_TOKEN_SHOWN_CHARS]}… ({len(text)} characters, shown to nobody else, kept in {token})")
    asking = {node: here.start_enrolling(node, here.join_token_file) for node in NODES}
    for node in NODES:
        stage.command("fleet-node", "enroll", "--config", here.shown(here.node_config(node)), "--token-file", "-")
    on_node = {node: process.wait_line(_FINGERPRINT, WAIT_S).group(1) for node, process in asking.items()}
    stage.command("fleetctl", "enrollments", "list")
    asked = {one["name"]: one for one in here.fleetctl("enrollments", "list")}
    on_server = {name: show_fingerprint(bytes.fromhex(one["fingerprint"])) for name, one in asked.items()}
    stage.table(
        ("node", "the node prints", "the server shows", "same"),
        [
            (
                node,
                stage.fingerprint(on_node[node]),
                stage.fingerprint(on_server.get(node, "-")),
                "yes" if on_node[node] == on_server.get(node) else "NO",
            )
            for node in NODES
        ],
        whole=("node", "the node prints", "the server shows"),
    )
    stage.check(on_node == on_server, "the fingerprints are the same on both sides, compared before any approval")
    wrong = on_node[NODES[1]]
    here.fleetctl("enrollments", "approve", NODES[0], "--fingerprint", wrong, expect=3)
    stage.check(not _member(here, NODES[0]), f"{NODES[0]} with the fingerprint of {NODES[1]}: approval refused")
    _approve(stage, here, asking, on_node)


def streams(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """`fleet-node run` three times, until every stream is up."""
    for node in NODES:
        stage.command("fleet-node", "run", "--config", here.shown(here.node_config(node)))
        here.start_node(node)
    here.wait(lambda: admin.online() == set(NODES), "a live stream of every node")
    stage.command("fleetctl", "nodes", "list")
    nodes = here.fleetctl("nodes", "list")
    stage.table(
        ("node", "state", "stream", "epoch", "version", "labels"),
        [
            (
                node["name"],
                node["state"],
                "online" if node["online"] else "offline",
                node["stream_epoch"],
                node["version"],
                " ".join(f"{key}={value}" for key, value in node["labels"].items()),
            )
            for node in nodes
        ],
        right=("epoch",),
    )
    stage.check(all(node["online"] and node["state"] == "ACTIVE" for node in nodes), "three nodes, three live streams")


def _approve(stage: Stage, here: Installation, asking: dict[str, RunningProcess], fingerprints: dict[str, str]) -> None:
    for node in NODES:
        line = "2" if node.startswith("oven") else "1"
        approve = ["enrollments", "approve", node, "--fingerprint", fingerprints[node], "--label", f"line={line}"]
        stage.command("fleetctl", *approve)
        approved = here.fleetctl(*approve)
        stage.check(
            bytes.fromhex(approved["fingerprint"]) == parse_fingerprint(fingerprints[node]) and approved["node_id"],
            f"{node} is node {approved['node_id']}",
        )
    codes = [process.wait_exit(WAIT_S) for process in asking.values()]
    stage.check(codes == [0] * len(NODES), "every node verified its signed bootstrap against the token's pins")
    keys = [here.state / node / name for node in NODES for name in ("identity.key", "sealing.key", "membership.json")]
    stage.check(all(_private(path) for path in keys), "private keys never left their nodes: 0600 files in 0700 folders")


def _member(here: Installation, node: str) -> bool:
    return (here.state / node / "membership.json").exists()


def _private(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) == 0o600
