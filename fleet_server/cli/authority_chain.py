"""Which authorities fleetctl trusts: the one that login pinned, and those that followed it, as the server's chain of
bundles proves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fleet_server.cli.failures import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fleet.v1 import trust_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.invocation import Invocation
    from fleet_server.cli.profile import Context, Profile


def followed(invocation: Invocation, admin: Admin, *, authority_key: bytes = b"", cluster_id: str = "") -> list[bytes]:
    """Raw public keys of the pinned authority and of all that followed it, oldest first. The newest is remembered: from
    then on a chain that does not lead over it is refused, whoever holds the keys of those before it.

    Args:
        authority_key: pinned in place of the context's.
        cluster_id: pinned in place of the context's.

    Raises:
        Refused: the chain does not lead from the pin over what was remembered.
    """
    from fleet.v1 import admin_pb2

    context = admin.context
    chain = admin.call(admin.stub.ListAuthorities, admin_pb2.ListAuthoritiesRequest()).chain
    if authority_key and authority_key != context.authority_key:
        return proven(chain, authority_key, cluster_id or context.cluster_id)
    return kept_up(invocation, replace(context, cluster_id=cluster_id or context.cluster_id), chain)


def kept_up(invocation: Invocation, context: Context, chain: Iterable[trust_pb2.Signed]) -> list[bytes]:
    """As `followed`, by a chain that is there already.

    Raises:
        Refused: the chain does not lead from the context's pin over what was remembered.
    """
    keys = proven(chain, context.authority_key, context.cluster_id)
    if context.newest_authority and context.newest_authority not in keys:
        raise _refused("it does not lead over the newest authority that was seen before")
    if context.name and keys[-1] not in (context.newest_authority, context.authority_key):
        remember(invocation, context, keys[-1])
    return keys


def followed_if_proven(invocation: Invocation, admin: Admin) -> list[bytes]:
    """As `followed`; the pinned authority alone when the server does not prove that another one followed it."""
    try:
        return followed(invocation, admin)
    except Refused:
        return [admin.context.authority_key]


def proven(chain: Iterable[trust_pb2.Signed], pinned: bytes, cluster_id: str) -> list[bytes]:
    """Raw public keys of `pinned` and of all that followed it.

    Raises:
        Refused: the chain does not begin with it, or a link does not follow.
    """
    from fleet import trust_chain
    from fleet.trust import TrustError

    try:
        links = trust_chain.from_pin(chain, cluster_id=cluster_id, authority_key=pinned)
    except TrustError as error:
        raise _refused(error.detail) from error
    return list(trust_chain.authorities(links).values())


def newest_version(chain: Sequence[trust_pb2.Signed]) -> tuple[int, int]:
    """Version of the bundle at the end of a chain, as whoever shows it says."""
    from fleet.trust import claimed

    newest = claimed(chain[-1]) if chain else None
    return (newest.generation, newest.number) if newest is not None else (0, 0)


def first_of(chain: Iterable[trust_pb2.Signed]) -> bytes:
    """The first authority that a chain names, as whoever shows it says."""
    from fleet.trust import claimed

    return next((claimed(signed).authority_key for signed in chain), b"")


def remember(invocation: Invocation, context: Context, newest: bytes) -> None:
    """Keep the newest authority in the profile."""

    def change(profile: Profile) -> Profile:
        known = profile.contexts.get(context.name)
        if known is None or known.authority_key != context.authority_key:
            return profile
        return profile.with_context(replace(known, newest_authority=newest), make_current=False)

    invocation.profile_file().update(change)


def _refused(why: str) -> Refused:
    return Refused(
        f"the server does not prove that its authority follows the one that was pinned at login: {why}",
        hint="do not go on: ask the server's owner whether the authority changed, then `fleetctl login` again",
    )
