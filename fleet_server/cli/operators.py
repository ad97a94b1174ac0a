"""`fleetctl operators`: the people and programs that may call the Admin service."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.secret_output import check_new_file, emit_secret, secret_file_option
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import state_cell

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.profile import Context, Profile

ROLES = ("viewer", "operator", "release", "owner")
_COLUMNS = [Column("NAME"), Column("ROLE"), Column("STATE"), Column("CREATED"), Column("ID")]


@click.group(cls=Noun)
def operators() -> None:
    """Make, list and revoke operators, and replace their tokens."""


@operators.command("create", example="fleetctl operators create ci-deployer --role release --output-file ci.token")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the operator may do.")
@secret_file_option
@click.pass_obj
def create(invocation: Invocation, name: str, role: str, output_file: str | None) -> None:
    """Make an operator and show the token, once."""
    from fleet.v1 import admin_pb2

    check_new_file(output_file)
    with invocation.connect() as admin:
        made = admin.call(admin.stub.CreateOperator, admin_pb2.CreateOperatorRequest(name=name, role=role))
    emit_secret(invocation, made, secret_field="token", secret=made.token, output_file=output_file)
    invocation.say(f"Made {made.operator.name} ({made.operator.role}). The token is not shown again.")


@operators.command("list", example="fleetctl operators list")
@click.pass_obj
def list_operators(invocation: Invocation) -> None:
    """List operators, also revoked ones; never a token."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.ListOperators, admin_pb2.ListOperatorsRequest())
    invocation.emit_list(answer.operators, _COLUMNS, _row)


@operators.command("revoke", example="fleetctl operators revoke ci-deployer")
@click.argument("operator", shell_complete=complete.operator)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revoke(invocation: Invocation, operator: str, yes: bool) -> None:
    """End an operator's token at once. OPERATOR is a name or an id."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        invocation.confirm(f"End the token of {operator} for good?", assumed=yes)
        answer = admin.call(admin.stub.RevokeOperator, admin_pb2.RevokeOperatorRequest(operator=operator))
    invocation.emit_message(answer.operator, zip(("name", "role", "state"), _row(answer.operator), strict=False))
    invocation.advise(
        f"The signing key of {answer.operator.name} still counts at nodes, if it has a role: the owner runs "
        f"`fleetctl operator revoke-grant {answer.operator.name}`."
    )


@operators.command("rotate-token", example="fleetctl operators rotate-token ci-deployer --output-file ci.token")
@click.argument("operator", shell_complete=complete.operator)
@click.option("--yes", is_flag=True, help="Do not ask.")
@secret_file_option
@click.pass_obj
def rotate_token(invocation: Invocation, operator: str, yes: bool, output_file: str | None) -> None:
    """Replace an operator's token, and show the new one, once; name, role and signing key stay.

    For a token that leaked or was lost. The one before ends at once. Everybody may replace their own, owners those of
    others. OPERATOR is a name or an id. When it is your own, this context goes on with the new token.
    """
    from fleet.v1 import admin_pb2

    check_new_file(output_file)
    with invocation.connect() as admin:
        invocation.confirm(f"Replace the token of {operator}? The one in use ends at once.", assumed=yes)
        made = admin.call(admin.stub.RotateOperatorToken, admin_pb2.RotateOperatorTokenRequest(operator=operator))
        if made.own:
            keep_token(invocation, admin.context, made.token)
    emit_secret(invocation, made, secret_field="token", secret=made.token, output_file=output_file)
    invocation.say(f"The token of {made.operator.name} before this one has ended. The new one is not shown again.")


def keep_token(invocation: Invocation, context: Context, token: str) -> None:
    """Go on with a new token in the context whose own one it replaces."""

    def change(profile: Profile) -> Profile:
        known = profile.contexts.get(context.name)
        if known is None or known.token != context.token:
            return profile
        return profile.with_context(replace(known, token=token), make_current=False)

    invocation.profile_file().update(change)


def _row(operator: admin_pb2.OperatorView) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    state = "REVOKED" if operator.revoked_at_ms else "ACTIVE"
    return [operator.name, operator.role, state_cell(state), moment_text(operator.created_at_ms), operator.operator_id]
