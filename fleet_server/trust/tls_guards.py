"""What has to be so before a certificate of another TLS CA is shown, or one is trusted no longer. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fleet.errors import Reason, Refusal
from fleet_server.trust import tls_phases
from fleet_server.trust.rollout import Rollout
from fleet_server.trust.tls_phases import TlsCa


def check_reaches(far: Rollout[TlsCa]) -> None:
    """Refuse a step after which nodes would meet a certificate that they do not trust yet.

    Raises:
        Refusal: CONFLICT, with the numbers.
    """
    if far.complete:
        return
    missing = far.asked - far.holding
    raise Refusal(
        Reason.CONFLICT,
        f"{tls_phases.name(far.record)} is not everywhere yet: {far.holding} of {far.asked} nodes that are online or"
        f" were seen within a day trust it, and {missing} would be cut off until they fetch it, such as"
        f" {', '.join(far.lacking[:3])}. Wait until `fleetctl tls rollout` shows none, suspend what cannot follow, or"
        " go on all the same with --override",
        metadata={"asked": str(far.asked), "holding": str(far.holding), "lacking": str(missing)},
    )


def check_shown(ca: TlsCa, missing: Sequence[str]) -> None:
    """Refuse a step after which some replica would show nothing that nodes trust.

    Args:
        missing: ids of replicas that show no certificate of the CA from outside.

    Raises:
        Refusal: CONFLICT, with the replicas.
    """
    if not missing:
        return
    raise Refusal(
        Reason.CONFLICT,
        f"{', '.join(missing[:3])} show{'s' if len(missing) == 1 else ''} no certificate of {tls_phases.name(ca)}: put"
        " its certificate, chain and key into outside.pem (0600) in the folder tls of each replica's data folder, or"
        " name what shows it in tls_terminator_leaf_sha256, and wait a few seconds; with --override it is your word"
        " that something does",
        metadata={"replicas": ",".join(missing)},
    )
