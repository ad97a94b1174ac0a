"""The root of fleetctl's commands: every noun by name, with its line in the help; loaded when used."""

from __future__ import annotations

import click

from fleet_server.cli.grammar import Lazy, Root

_PACKAGE = "fleet_server.cli"

NOUNS = {
    "login": Lazy(f"{_PACKAGE}.login:login", "Remember a server and who you are to it."),
    "logout": Lazy(f"{_PACKAGE}.login:logout", "Forget a server."),
    "whoami": Lazy(f"{_PACKAGE}.login:whoami", "Show who you are, with which role."),
    "contexts": Lazy(f"{_PACKAGE}.contexts:contexts", "Switch between servers."),
    "operators": Lazy(f"{_PACKAGE}.operators:operators", "Make, list and revoke operators."),
    "operator": Lazy(f"{_PACKAGE}.operator_keys:operator", "Your signing key, and the roles of people's keys."),
    "owner": Lazy(f"{_PACKAGE}.owner:owner", "Name the owner's key, and its successor."),
    "policy": Lazy(f"{_PACKAGE}.policy:policy", "Say which actions need how many people's signatures."),
    "join-token": Lazy(f"{_PACKAGE}.join_token:join_token", "Make, list and revoke join tokens."),
    "enrollments": Lazy(f"{_PACKAGE}.enrollments:enrollments", "Decide which nodes may join."),
    "nodes": Lazy(f"{_PACKAGE}.nodes:nodes", "List, watch, label, suspend, rotate, adopt, replace and revoke nodes."),
    "run": Lazy(f"{_PACKAGE}.run:run", "Issue an action to nodes and wait for every outcome."),
    "approve": Lazy(f"{_PACKAGE}.approvals:approve", "Sign a protected command that waits."),
    "approvals": Lazy(f"{_PACKAGE}.approvals:approvals", "See and end protected commands that wait."),
    "commands": Lazy(f"{_PACKAGE}.commands:commands", "List, show, watch and cancel commands."),
    "drain": Lazy(f"{_PACKAGE}.drain:drain", "Take work off nodes or a server replica."),
    "resume": Lazy(f"{_PACKAGE}.drain:resume", "End a drain."),
    "replicas": Lazy(f"{_PACKAGE}.replicas:replicas", "See the server's replicas."),
    "routes": Lazy(f"{_PACKAGE}.routes:routes", "Make, watch, explain and draw routes between nodes."),
    "relays": Lazy(f"{_PACKAGE}.relays:relays", "Say which nodes may relay routes."),
    "telemetry": Lazy(f"{_PACKAGE}.telemetry:telemetry", "Read what nodes measure."),
    "audit": Lazy(f"{_PACKAGE}.audit:audit", "Read, verify and export the audit."),
    "keys": Lazy(f"{_PACKAGE}.keys:keys", "See the cluster's keys, and rotate command keys."),
    "authority": Lazy(f"{_PACKAGE}.authority:authority", "See and rotate the cluster's authority."),
    "tls": Lazy(f"{_PACKAGE}.tls:tls", "See and rotate the TLS CAs that nodes trust the server by."),
    "root": Lazy(f"{_PACKAGE}.product_root:root", "Make the product root's key, and sign with it; offline."),
    "installation": Lazy(f"{_PACKAGE}.installation:installation", "Activate an installation in strict mode."),
    "completion": Lazy(f"{_PACKAGE}.shell:completion", "Print a shell's completion script."),
    "version": Lazy(f"{_PACKAGE}.shell:version", "Show versions."),
}


_EXAMPLE = """\
fleetctl login gateway.example:7444 --ca-file ca.pem --token-file owner.token
fleetctl nodes list
fleetctl run 'press-*' host.info"""


@click.group(cls=Root, nouns=NOUNS, example=_EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
def fleetctl() -> None:
    """Operate a fleet of nodes through its gateway.

    Start with `fleetctl login SERVER`. Data goes to standard output, everything else to standard error.
    """
