"""`fleetctl policy`: which actions need how many people's signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleet_server.cli.failures import BadProfile, Refused
from fleet_server.cli.grammar import Duration, Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.passphrase import open_key, passphrase_file_option
from fleet_server.cli.people import (
    ROLES,
    owner_key_option,
    owners_key_file,
    put_signed,
    say_policy,
    verify_people,
    verify_to_sign,
)
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from fleet.people import People
    from fleet.v1 import trust_pb2
    from fleet_server.cli.connection import Admin

_COLUMNS = [Column("ACTIONS"), Column("PEOPLE", right=True), Column("IN THE ROLES")]
_MAX_FILE_BYTES = 64 * 1024
_EXAMPLE = 'for = "90d" and [[rule]] with actions = "exec.*", people = 2, roles = ["operator"]'


@click.group(cls=Noun)
def policy() -> None:
    """Say which actions need how many people's signatures."""


@policy.command("show", example="fleetctl policy show")
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Show the policy, verified from the owner pin of this profile on. The first rule that matches decides."""
    with invocation.connect() as admin:
        people = verify_people(invocation, admin)
    if people.policy is None:
        raise Refused(
            "there is no policy: whatever is protected is refused by every node",
            hint="the owner writes one: `fleetctl policy set FILE`",
        )
    _emit(invocation, people, people.policy.signed)


@policy.command("set", example="fleetctl policy set policy.toml")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@owner_key_option
@passphrase_file_option
@click.pass_obj
def set_policy(invocation: Invocation, file: Path, owner_key_file: Path | None, passphrase_file: Path | None) -> None:
    """Put the policy of a TOML file in force, signed with the owner's key.

    `for` says how long it is good: `for = "90d"`. Each `[[rule]]` says `actions` (a glob such as
    "exec.*"), `people` (how many must sign) and `roles` (whose signatures count). The first rule that matches decides.
    Whatever is protected and no rule names is refused.
    """
    rules, lifetime_s = _read(file)
    with invocation.connect() as admin:
        people, _ = verify_to_sign(invocation, admin)
        _sign_and_put(invocation, admin, people, rules, lifetime_s, owner_key_file, passphrase_file)


@policy.command("sign", example="fleetctl policy sign --for 90d")
@click.option("--for", "lifetime_s", type=Duration(), default="90d", show_default=True, help="How long from now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@owner_key_option
@passphrase_file_option
@click.pass_obj
def sign(
    invocation: Invocation, lifetime_s: int, yes: bool, owner_key_file: Path | None, passphrase_file: Path | None
) -> None:
    """Sign the policy that stands once more, with a later end.

    Its rules are shown before: a server could hand out an older policy than nodes hold. What this machine has seen it
    remembers, and nothing older is signed.
    """
    from fleet.v1 import trust_pb2

    with invocation.connect() as admin:
        people, _ = verify_to_sign(invocation, admin)
        if people.policy is None:
            raise Refused("there is no policy to sign again", hint="write one: `fleetctl policy set FILE`")
        standing = trust_pb2.PolicyStatement.FromString(people.policy.signed.statement)
        say_policy(invocation, standing)
        invocation.confirm("Sign these rules once more?", assumed=yes)
        _sign_and_put(invocation, admin, people, list(standing.rules), lifetime_s, owner_key_file, passphrase_file)


def _sign_and_put(
    invocation: Invocation,
    admin: Admin,
    people: People,
    rules: list[trust_pb2.PolicyRule],
    lifetime_s: int,
    owner_key_file: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Sign rules as the successor of the policy of `people`: of what was shown with them, and of nothing that the
    server shows since."""
    from fleet.people import PeopleError
    from fleet.people_signing import sign_policy
    from fleet.v1 import trust_pb2

    path = owners_key_file(admin.context, owner_key_file)
    now_ms = invocation.now_ms()
    statement = trust_pb2.PolicyStatement(
        cluster_id=admin.context.cluster_id,
        version=1 if people.policy is None else people.policy.version + 1,
        rules=rules,
        issued_at_ms=now_ms,
        not_after_ms=now_ms + lifetime_s * 1000,
    )
    try:
        signed = sign_policy(open_key(invocation, path, passphrase_file), statement)
    except PeopleError as error:
        raise BadProfile(error.detail, hint=f"a policy file holds {_EXAMPLE}") from error
    put_signed(invocation, admin, admin.context, policy=signed)
    _emit(invocation, people, signed)


def _emit(invocation: Invocation, people: People, signed: trust_pb2.Signed) -> None:
    from fleet.v1 import trust_pb2
    from fleet_server.cli.views import moment, moment_text

    said = trust_pb2.PolicyStatement.FromString(signed.statement)
    if invocation.wants_json:
        invocation.emit_json(
            {
                "version": said.version,
                "issued_at": moment(said.issued_at_ms),
                "not_after": moment(said.not_after_ms),
                "rules": [
                    {"actions": rule.action_glob, "people": rule.required, "roles": list(rule.roles)}
                    for rule in said.rules
                ],
            }
        )
        return
    rows: list[list[Cell]] = [
        [Styled(rule.action_glob, bold=True), str(rule.required), ", ".join(rule.roles)] for rule in said.rules
    ]
    invocation.emit_table(_COLUMNS, rows)
    over = said.not_after_ms <= invocation.now_ms()
    invocation.say(
        f"Version {said.version}, {'OVER since' if over else 'good until'} {moment_text(said.not_after_ms)}."
    )
    stands = people.policy is not None and people.policy.signed.statement == signed.statement
    if stands and people.policy_in_force is None:
        invocation.say("A former owner signed it: it lets nothing pass. The owner runs `fleetctl policy sign`.")


def _read(file: Path) -> tuple[list[trust_pb2.PolicyRule], int]:
    import tomllib

    try:
        raw = file.read_bytes()
    except OSError as error:
        raise BadProfile(f"cannot read {file}: {error.strerror}", hint="name a file that this user may read") from error
    try:
        document = tomllib.loads(raw[: _MAX_FILE_BYTES + 1].decode())
    except (ValueError, RecursionError) as error:
        raise BadProfile(f"{file} is not TOML: {error}", hint=f"a policy file holds {_EXAMPLE}") from error
    lifetime_s = Duration().convert(_only(document, "for", str, file), None, None)
    tables = _only(document, "rule", list, file)
    _refuse_unknown(document, ("for", "rule"), file)
    return [_rule(table, file) for table in tables], lifetime_s


def _rule(table: Any, file: Path) -> trust_pb2.PolicyRule:
    from fleet.v1 import trust_pb2

    if not isinstance(table, dict):
        raise BadProfile(f"{file}: a rule is a table", hint=f"a policy file holds {_EXAMPLE}")
    _refuse_unknown(table, ("actions", "people", "roles"), file)
    roles = _only(table, "roles", list, file)
    for role in roles:
        if role not in ROLES:
            raise BadProfile(f"{file}: {role!r} is no role", hint=f"roles are {', '.join(ROLES)}")
    people = _only(table, "people", int, file)
    if not 1 <= people <= 16:
        raise BadProfile(f"{file}: a rule asks for 1 to 16 people, not {people}", hint="write people = 2")
    return trust_pb2.PolicyRule(action_glob=_only(table, "actions", str, file), required=people, roles=roles)


def _only(table: dict[str, Any], key: str, kind: type, file: Path) -> Any:
    value = table.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadProfile(
            f"{file}: `{key}` is missing, or not what it should be", hint=f"a policy file holds {_EXAMPLE}"
        )
    return value


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...], file: Path) -> None:
    unknown = sorted(table.keys() - set(known))
    if unknown:
        raise BadProfile(f"{file}: `{unknown[0]}` is not known here", hint=f"known are {', '.join(known)}")
