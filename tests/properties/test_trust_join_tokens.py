"""Which join token a node believes (docs/protocol.md, "Trust")."""

from __future__ import annotations

import pytest

from fleet import trust
from fleet.envelope import Domain, Signer
from fleet.trust import TrustError, TrustReason
from fleet.v1 import enrollment_pb2, trust_pb2
from tests.properties.offers import AUTHORITIES, CLUSTER, STRANGER


def token(by: Signer = AUTHORITIES[1], **fields: object) -> enrollment_pb2.JoinToken:
    said = enrollment_pb2.JoinTokenStatement(
        token_id="jt-1",
        cluster_id=CLUSTER,
        endpoints=["gateway.example:7443"],
        tls_ca_der=b"der",
        authority_key=AUTHORITIES[1].public_key,
    )
    for name, value in fields.items():
        if name == "endpoints":
            said.ClearField("endpoints")
        else:
            setattr(said, name, value)
    return enrollment_pb2.JoinToken(signed=by.sign(Domain.JOIN_TOKEN, said.SerializeToString()), secret=bytes(32))


def with_(made: enrollment_pb2.JoinToken, **fields: object) -> enrollment_pb2.JoinToken:
    for name, value in fields.items():
        setattr(made, name, value)
    return made


BAD_TOKENS = {
    "signed by another than it names": token(STRANGER),
    "names no authority": token(authority_key=b""),
    "no endpoint": token(endpoints=()),
    "no id": token(token_id=""),
    "no cluster": token(cluster_id=""),
    "no certificate authority": token(tls_ca_der=b""),
    "no secret": with_(token(), secret=b""),
    "half a secret": with_(token(), secret=bytes(16)),
    "half an owner pin": with_(token(), owner_pin=bytes(16)),
    "empty": enrollment_pb2.JoinToken(),
    "garbage": enrollment_pb2.JoinToken(signed=trust_pb2.Signed(statement=b"\xff\xff")),
}


def test_a_good_token_says_what_it_says() -> None:
    assert trust.verify_join_token(token()).cluster_id == CLUSTER
    assert trust.verify_join_token(with_(token(), owner_pin=bytes(32))).token_id == "jt-1"


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_tokens_that_are_refused(bad: enrollment_pb2.JoinToken) -> None:
    with pytest.raises(TrustError, match="copy it again") as caught:
        trust.verify_join_token(bad)
    assert caught.value.reason is TrustReason.MALFORMED
