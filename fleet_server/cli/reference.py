"""docs/fleetctl.md, written from the commands themselves: `python -m fleet_server.cli.reference [--check] [FILE]`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fleet.standard_streams import READER_LEFT
from fleet.v1 import (
    admin_pb2,
    admin_route_pb2,
    command_pb2,
    enrollment_pb2,
    gateway_pb2,
    installation_pb2,
    session_pb2,
    telemetry_pb2,
    trust_pb2,
)
from fleet_server.cli.failures import EXIT_CODE_MEANING
from fleet_server.cli.grammar import Noun, Verb
from fleet_server.cli.root import NOUNS, fleetctl
from fleet_server.cli.views import enum_word, json_name, json_type

DEFAULT_PATH = Path("docs/fleetctl.md")

_TEXT = "text, with or without it"
JSON_OF_VERB = {
    "login": "WhoAmIResponse",
    "logout": "nothing",
    "whoami": "WhoAmIResponse",
    "contexts list": "array of `{name, current, server, cluster_id, authority_key, checkpoint}`",
    "contexts use": "nothing",
    "operators create": "CreateOperatorResponse",
    "operators list": "array of OperatorView",
    "operators revoke": "OperatorView",
    "operators rotate-token": "RotateOperatorTokenResponse",
    "operator keygen": "`{file, public_key, sha256}`",
    "operator enroll": "OperatorKeyView",
    "operator list": "array of OperatorKeyView, each with `grants`: array of `{name, role, not_after}`",
    "operator show": "`{file, public_key, sha256}`",
    "operator grant": "array of `{operator, role, public_key, not_after}`",
    "operator revoke-grant": "array of `{operator, role, public_key, not_after}`",
    "owner init": "`{generation, public_key, owner_pin}`",
    "owner show": "`{generation, public_key, owner_pin}`",
    "owner rotate": "`{generation, public_key, owner_pin}`",
    "policy show": "`{version, issued_at, not_after, rules: array of {actions, people, roles}}`",
    "policy set": "as `policy show`",
    "policy sign": "as `policy show`",
    "join-token create": "JoinTokenView, and `token` with the text",
    "join-token list": "array of JoinTokenView",
    "join-token revoke": "JoinTokenView",
    "enrollments list": "array of EnrollmentView",
    "enrollments approve": "EnrollmentView",
    "enrollments reject": "EnrollmentView",
    "nodes list": "array of NodeView",
    "nodes show": "GetNodeResponse",
    "nodes watch": "JSON Lines of NodeView",
    "nodes suspend": "array of NodeView",
    "nodes resume": "array of NodeView",
    "nodes revoke": "array of NodeView",
    "nodes adopt": "array of NodeView",
    "nodes replace": "array of NodeView, with one",
    "nodes rotate": "RotateNodesResponse",
    "nodes checklist": "GetChecklistResponse; with `--done` TickChecklistResponse",
    "nodes label": "array of NodeView",
    "run": "`{issue_id, commands: array of CommandView, refused: array of RefusedTarget}`; "
    "with --no-wait IssueCommandsResponse",
    "approve": "as `approvals show`",
    "approvals list": "array of what `approvals show` gives",
    "approvals show": "ApprovalView, with `action`, `arguments` and `targets` (array of `{name, node_id, "
    "fingerprint}`) in place of `command`",
    "approvals reject": "as `approvals show`",
    "approvals withdraw": "as `approvals show`",
    "commands list": "array of CommandView",
    "commands show": "CommandView",
    "commands cancel": "array of CommandView, `arguments` and `output` null: `commands show` gives them",
    "commands watch": "JSON Lines of CommandView",
    "drain node": "array of NodeView",
    "drain replica": "DrainReplicaResponse",
    "drain wave": "`{drained, failed, left, left_out, stopped}`, `failed` and `left_out` with a reason for each name; "
    "with --dry-run `{batches}`; with --replicas `{drained, failed, left}`",
    "resume node": "array of NodeView",
    "replicas list": "array of ReplicaView",
    "routes create": "CreateRouteResponse",
    "routes list": "array of RouteView",
    "routes show": "GetRouteResponse",
    "routes explain": "ExplainRouteResponse",
    "routes watch": "JSON Lines of RouteView, and `{route_id, removed: true}` for one that is gone",
    "routes history": "RouteHistoryResponse",
    "routes disable": "RouteView",
    "routes enable": "RouteView",
    "routes remove": "RouteView",
    "routes graph": "`{file, routes, nodes}`, both counted",
    "relays add": "RelayView",
    "relays list": "array of RelayView",
    "relays remove": "RelayView, as it was",
    "telemetry latest": "array of LatestValue",
    "telemetry history": "array of SeriesHistory",
    "audit tail": "JSON Lines of AuditEntry",
    "audit verify": "`{verified, rows, writers, checkpoints, newest_checkpoint, newest_checkpoint_sha256, "
    "newest_checkpoint_at, uncovered_rows, alarms, agreed_commands, awaited_commands, left_out_commands, "
    "lost_commands, node_fingerprints, rows_not_signed_by_nodes, other_node_keys, broken_nodes, "
    "later_chains: [{node_id, chain, reason, continues, number, beyond}]}`, "
    "or `{verified: false, finding, message}`",
    "audit export": 'JSON Lines of AuditEntry with `"type": "row"` and Signed with `"type": "checkpoint"`',
    "keys list": "ListKeysResponse",
    "keys rollout": "GetKeyRolloutResponse",
    "keys prepare": "PrepareKeyResponse",
    "keys activate": "ActivateKeyResponse",
    "keys retire": "RetireKeyResponse",
    "keys revoke": "RevokeKeyResponse",
    "tls list": "ListTlsCasResponse",
    "tls rollout": "ListTlsCasResponse",
    "tls prepare": "PrepareTlsCaResponse",
    "tls activate": "ActivateTlsCaResponse",
    "tls retire": "RetireTlsCaResponse",
    "tls revoke": "RevokeTlsCaResponse",
    "authority list": "ListAuthoritiesResponse",
    "authority rotate": "RotateAuthorityResponse",
    "root keygen": "`{file, public_key}`",
    "root sign-activation": "`{signed}`, or `{file}` with --output-file",
    "root sign-grant": "`{signed}`, or `{file}` with --output-file",
    "installation status": "GetInstallationResponse",
    "installation activate": "GetInstallationResponse",
    "installation claim": "ClaimOwnerResponse",
    "installation grant": "PlatformGrantView",
    "completion": _TEXT,
    "version": "`{fleetctl, server}`",
}
"""What each verb writes with `--output json`."""

_MESSAGES: tuple[Any, ...] = (
    admin_pb2.WhoAmIResponse,
    admin_pb2.CreateOperatorResponse,
    admin_pb2.OperatorView,
    admin_pb2.OperatorKeyView,
    admin_pb2.ApprovalView,
    admin_pb2.JoinTokenView,
    admin_pb2.EnrollmentView,
    admin_pb2.NodeView,
    admin_pb2.GetNodeResponse,
    gateway_pb2.DriverDescriptor,
    gateway_pb2.ActionDescriptor,
    session_pb2.BundleVersion,
    admin_pb2.IssueCommandsResponse,
    admin_pb2.IssuedCommand,
    admin_pb2.RefusedTarget,
    admin_pb2.CommandView,
    admin_pb2.ReplicaView,
    admin_pb2.DrainReplicaResponse,
    admin_route_pb2.CreateRouteResponse,
    admin_route_pb2.RouteView,
    admin_route_pb2.GetRouteResponse,
    admin_route_pb2.RouteLeaseView,
    admin_route_pb2.RouteObservationView,
    admin_route_pb2.RouteMemberView,
    admin_route_pb2.ExplainRouteResponse,
    admin_route_pb2.RouteDecisionView,
    admin_route_pb2.RouteReason,
    admin_route_pb2.RouteCandidateView,
    admin_route_pb2.RouteScorePart,
    admin_route_pb2.RouteHistoryResponse,
    admin_route_pb2.RelayView,
    admin_pb2.LatestValue,
    admin_pb2.SeriesHistory,
    admin_pb2.AuditEntry,
    trust_pb2.Signed,
    trust_pb2.Signature,
    admin_pb2.ListKeysResponse,
    admin_pb2.CommandKeyView,
    admin_pb2.BundleHolders,
    admin_pb2.GetKeyRolloutResponse,
    admin_pb2.KeyRollout,
    admin_pb2.PrepareKeyResponse,
    admin_pb2.ActivateKeyResponse,
    admin_pb2.RetireKeyResponse,
    admin_pb2.RevokeKeyResponse,
    admin_pb2.ListAuthoritiesResponse,
    admin_pb2.AuthorityView,
    admin_pb2.RotateAuthorityResponse,
    installation_pb2.GetInstallationResponse,
    installation_pb2.ClaimOwnerResponse,
    installation_pb2.PlatformGrantView,
)
_ENUMS: tuple[Any, ...] = (
    command_pb2.CommandState,
    enrollment_pb2.EnrollmentState,
    trust_pb2.KeyPhase,
    telemetry_pb2.SeriesKind,
)

_HEAD = """# fleetctl

The operators' command line. This page is written by `python -m fleet_server.cli.reference`; change the commands, not
the page.

Data goes to standard output, everything else (messages, questions, progress) to standard error. Colours are left out
when the output is not a terminal, or when `NO_COLOR` is set. On a narrow terminal a table leaves out the columns that
matter least; a pipe gets all of them. The options of every verb may stand at any position. TAB completes verbs, and the
names of nodes, actions, routes, operators and tokens, once `fleetctl completion` has been set up.
"""

_PROFILE = """## Profile and environment

`fleetctl login` writes `~/.config/fleetctl/profile.toml` (0600; a looser file is refused with the `chmod` to run). It
holds one context for each server: address, CA, token, cluster id and authority key as pinned at login, the SHA-256 of
the owner's public key (`owner_pin`), where your own and the owner's key file lie (`key_file`, `owner_key_file`), and
the newest audit checkpoint that `audit verify` saw.
A key that fleetctl does not know is refused: a misspelt pin would be no pin.

| variable | meaning |
|---|---|
| `FLEETCTL_PROFILE` | another profile file |
| `FLEETCTL_CONTEXT` | context to use |
| `FLEETCTL_SERVER` | server to call instead of the context's |
| `FLEETCTL_CA_FILE` | CA to trust instead of the context's; needs a token beside it |
| `FLEETCTL_TOKEN`, `FLEETCTL_TOKEN_FILE` | token to use instead of the context's |
| `NO_COLOR` | no colours |

With server, CA and token set no profile is needed.
"""

_JSON = """## JSON

With `--output json` a verb writes one document; watches, `audit tail` and `audit export` write JSON Lines. A verb that
fails before there is anything to show writes none: the exit code says how it ended, standard error why. Fields are
those of the Admin service (`proto/fleet/v1/admin.proto`, `admin_route.proto`), all of them, always, under these rules:
a *time* is RFC 3339 in UTC, null when it never happened, and its name has no `_ms`; *hex* is lower-case; *JSON* is the
value itself; a *word* is an enum value without its prefix; an absent message is null. A later version may add fields
and words; it does not rename or remove any.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD, _exit_codes(), _PROFILE, _every_verb(), *_verbs(), _JSON, *_messages(), _words()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def is_current(path: Path = DEFAULT_PATH) -> bool:
    """Whether the page on disk is what `render` gives."""
    return path.is_file() and path.read_text(encoding="utf-8") == render()


def verbs() -> Iterator[tuple[str, Verb, click.Context]]:
    """Every verb: its words after `fleetctl`, the command, and a context to ask it in."""
    root = _root_context()
    for name in NOUNS:
        command = fleetctl.get_command(root, name)
        if isinstance(command, Verb):
            yield name, command, click.Context(command, parent=root, info_name=name)
        elif isinstance(command, Noun):
            noun = click.Context(command, parent=root, info_name=name)
            for word, verb in command.commands.items():
                if isinstance(verb, Verb):
                    yield f"{name} {word}", verb, click.Context(verb, parent=noun, info_name=word)


def _root_context() -> click.Context:
    return click.Context(fleetctl, info_name="fleetctl", **fleetctl.context_settings)


def _exit_codes() -> str:
    rows = [f"| {int(code)} | {meaning} |" for code, meaning in EXIT_CODE_MEANING.items()]
    left = f"| {READER_LEFT} | who read the output went away, as in `fleetctl audit export \\| head` |"
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *rows, left])


def _every_verb() -> str:
    root = _root_context()
    return "\n".join(["## Options of every verb", "", *_option_table(fleetctl.get_params(root), root), "", "## Verbs"])


def _verbs() -> Iterator[str]:
    for words, verb, context in verbs():
        own = [param for param in verb.params if isinstance(param, click.Option)]
        usage = f"{context.command_path} {' '.join(verb.collect_usage_pieces(context))}"
        lines = [f"### fleetctl {words}", "", *_paragraphs(verb.help or ""), "```", usage, "```", ""]
        if own:
            lines += [*_option_table(own, context), ""]
        lines += ["```sh", *verb.example.splitlines(), "```", "", f"JSON: {JSON_OF_VERB[words]}."]
        yield "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    paragraphs = [[line.strip() for line in paragraph.splitlines()] for paragraph in text.strip().split("\n\n")]
    return [line for paragraph in paragraphs for line in (*paragraph, "")]


def _option_table(params: list[click.Parameter] | list[click.Option], context: click.Context) -> list[str]:
    rows = []
    for param in params:
        record = param.get_help_record(context)
        if record is not None:
            names, meaning = (text.replace("|", "\\|") for text in record)
            rows.append(f"| `{names}` | {meaning} |")
    return ["| option | meaning |", "|---|---|", *rows]


def _messages() -> Iterator[str]:
    for message in _MESSAGES:
        descriptor = message.DESCRIPTOR
        rows = [f"| `{json_name(field)}` | {json_type(field)} |" for field in descriptor.fields]
        yield "\n".join([f"### {descriptor.name}", "", "| field | value |", "|---|---|", *rows])


def _words() -> str:
    lines = ["### Words", "", "| enum | words |", "|---|---|"]
    for enum in _ENUMS:
        words = ", ".join(enum_word(enum.DESCRIPTOR, number) for number in enum.DESCRIPTOR.values_by_number)
        lines.append(f"| {enum.DESCRIPTOR.name} | {words} |")
    return "\n".join(lines)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; end with 1 when the page is stale.")
@click.argument("path", type=click.Path(path_type=Path), default=DEFAULT_PATH)
def main(check: bool, path: Path) -> None:
    """Write the reference of fleetctl, or check that it is current."""
    if not check:
        path.write_text(render(), encoding="utf-8")
    elif not is_current(path):
        raise click.ClickException(f"{path} is stale: run `python -m fleet_server.cli.reference`")


if __name__ == "__main__":
    main()
