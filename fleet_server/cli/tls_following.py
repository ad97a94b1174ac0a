"""Which TLS CAs fleetctl trusts, once those that login pinned were rotated: what the chain of signed bundles says.

The chain comes over a connection that nobody verified, so nothing secret goes over it; signatures count, from the
authority that login pinned on. A bundle that has ended, or is older than the newest that was seen, may name a CA that
was revoked since, and counts for nothing (docs/protocol.md, "TLS CAs").
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fleet_server.cli.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fleet.v1 import admin_pb2, trust_pb2
    from fleet_server.cli.invocation import Invocation
    from fleet_server.cli.profile import Context

_CALL_TIMEOUT_S = 10.0
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def followed(invocation: Invocation, context: Context) -> Context | None:
    """The context with the TLS CAs that took the place of the pinned ones, remembered in the profile; None when the
    server does not prove any."""
    if not context.authority_key or not context.cluster_id:
        return None
    try:
        chain = _fetch_chain(context)
    except Failure:
        return None
    found = proven(context, chain, invocation.now_ms())
    if found is None or all(pem in context.ca_pem for pem in _certificates(found.ca_pem)):
        return None  # what is trusted already did not help
    if context.name:
        invocation.profile_file().remember(
            context.name,
            ca_pem=found.ca_pem,
            newest_authority=found.newest_authority,
            newest_bundle=found.newest_bundle,
        )
    invocation.say("The server's TLS CA was rotated: the authority that login pinned proves the new one.")
    return found


def proven(context: Context, chain: Sequence[trust_pb2.Signed], now_ms: int) -> Context | None:
    """The context as a chain proves it should be now; None when that is no chain from its pins, or too old a one.

    Args:
        chain: the first bundle of each generation, oldest first, then the newest.
        now_ms: of this machine's clock.
    """
    from fleet import tls, trust_chain
    from fleet.trust import TrustError

    try:
        links = trust_chain.from_pin(chain, cluster_id=context.cluster_id, authority_key=context.authority_key)
    except TrustError:
        return None
    keys, newest = list(trust_chain.authorities(links).values()), links[-1]
    if context.newest_authority and context.newest_authority not in keys:
        return None
    if newest.version < context.newest_bundle or newest.expires_at_ms <= now_ms or not newest.tls_ca_der:
        return None
    return replace(
        context,
        ca_pem="".join(tls.der_to_pem(der).decode() for der in newest.tls_ca_der),
        newest_authority=keys[-1] if len(keys) > 1 else b"",
        newest_bundle=newest.version,
    )


def keep_up(invocation: Invocation, context: Context, answer: admin_pb2.ListTlsCasResponse) -> None:
    """Remember what a trusted server showed: the newest bundle, for from then on no older one counts; and which CAs
    were revoked, for several are trusted while one follows the other, and a connection under the newer one works on.
    One that is merely retired stays: behind a CA from outside it goes on signing for the operators' listener."""
    if not context.name:
        return
    changes: dict[str, Any] = {}
    found = proven(context, answer.chain, invocation.now_ms()) if context.authority_key else None
    if found is not None and found.newest_bundle > context.newest_bundle:
        changes["newest_bundle"] = found.newest_bundle
    ca_pem = _without_revoked(context.ca_pem, answer.cas)
    if ca_pem != context.ca_pem:
        changes["ca_pem"] = ca_pem
        invocation.say("A TLS CA of the server was revoked: it is trusted no longer here, either.")
    if changes:
        invocation.profile_file().remember(context.name, **changes)


def _without_revoked(ca_pem: str, cas: Iterable[admin_pb2.TlsCaView]) -> str:
    import ssl

    from fleet import tls
    from fleet.v1 import admin_pb2

    revoked = {ca.sha256 for ca in cas if ca.phase == admin_pb2.TLS_CA_PHASE_REVOKED}
    held = _certificates(ca_pem)
    kept = [pem for pem in held if tls.certificate_sha256(ssl.PEM_cert_to_DER_cert(pem)) not in revoked]
    return "\n".join(kept) + "\n" if kept and len(kept) < len(held) else ca_pem


def _certificates(pem: str) -> list[str]:
    return _CERTIFICATE.findall(pem.replace("\r", ""))


def _fetch_chain(context: Context) -> Sequence[trust_pb2.Signed]:
    import grpc

    from fleet.trust import MAX_KEPT_BYTES
    from fleet.v1 import trust_pb2
    from fleet.v1.installation_pb2_grpc import InstallationStub
    from fleet_server.cli import server_certificate
    from fleet_server.cli.failures import explain

    leaf_pem = server_certificate.fetch_leaf(context.server)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", MAX_KEPT_BYTES)]
    with grpc.secure_channel(context.server, grpc.ssl_channel_credentials(leaf_pem), options=options) as channel:
        asked = trust_pb2.GetTrustChainRequest(cluster_id=context.cluster_id)
        try:
            return InstallationStub(channel).GetTrustChain(asked, timeout=_CALL_TIMEOUT_S).bundles
        except grpc.RpcError as error:
            raise explain(error, server=context.server) from error
