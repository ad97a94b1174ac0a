"""The way back in for a node whose TLS CAs were rotated while it was away (docs/protocol.md, "TLS CAs").

When no endpoint shows a certificate of a trusted CA, the node asks whoever answers for the chain of signed bundles. It
believes the signatures, and nobody: without a newer bundle under the authority that it pinned nothing has changed.
Whoever sits in between can withhold it, as always, and no more.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence

from fleet import trust_chain
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.trust import TrustError
from fleet.v1 import trust_pb2
from fleet_node.enrollment.membership import Membership
from fleet_node.link.caller import ClientCertificate, GatewayCaller, LeafCache, open_caller, unverified_chain
from fleet_node.link.ports import TrustPort

log = get_logger(__name__)


async def open_following(
    endpoints: Sequence[str],
    trust: TrustPort,
    membership: Membership,
    leaves: LeafCache,
    certificate: ClientCertificate | None,
    *,
    behind: Sequence[str] = (),
) -> GatewayCaller:
    """As `open_caller` under the CAs of the bundle, or of a newer one if only that helps.

    Raises:
        Refusal: none answered, or none proves that it is the cluster's.
    """
    held = trust.state.tls_ca_der or (membership.tls_ca_der,)
    try:
        return await open_caller(endpoints, held, leaves, certificate, behind=behind)
    except Refusal as refusal:
        if refusal.reason is not Reason.WRONG_CERTIFICATE:
            raise
        generation, number = trust.state.version
        asked = trust_pb2.GetTrustChainRequest(
            cluster_id=membership.cluster_id, from_generation=generation, from_number=number
        )
        async for chain in _chains(endpoints, asked, certificate):
            await trust.offer(chain)
            if trust.state.tls_ca_der not in ((), held):
                break
        else:
            raise
    log.info("tls_cas_followed", bundle=trust.state.version)
    return await open_caller(endpoints, trust.state.tls_ca_der, leaves, certificate, behind=behind)


async def learn_cas(
    endpoints: Sequence[str], *, cluster_id: str, authority_key: bytes, at_least: tuple[int, int]
) -> tuple[bytes, ...]:
    """TLS CAs (DER) that hold now, for a newcomer who has a pinned authority and no bundle yet; none when nobody proves
    any.

    Args:
        at_least: version (generation, number) of the oldest bundle that counts: an older one may name a CA that was
            revoked since.
    """
    asked = trust_pb2.GetTrustChainRequest(cluster_id=cluster_id)
    async for chain in _chains(endpoints, asked, None):
        try:
            newest = trust_chain.from_pin(chain, cluster_id=cluster_id, authority_key=authority_key)[-1]
        except TrustError as error:
            log.warning("trust_chain_refused", reason=str(error.reason), detail=error.detail)
            continue
        if newest.version >= at_least and newest.tls_ca_der:
            return newest.tls_ca_der
        log.warning("trust_chain_refused", reason="ROLLBACK", held=at_least, offered=newest.version)
    return ()


async def _chains(
    endpoints: Sequence[str], asked: trust_pb2.GetTrustChainRequest, certificate: ClientCertificate | None
) -> AsyncIterator[Sequence[trust_pb2.Signed]]:
    for endpoint in random.sample(list(endpoints), len(endpoints)):
        try:
            chain = await unverified_chain(endpoint, asked, certificate)
        except Refusal as refusal:
            log.info("trust_chain_not_fetched", endpoint=endpoint, detail=refusal.detail)
            continue
        if chain:
            yield chain
