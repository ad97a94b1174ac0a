"""A node's signatures over its own chain: who has the server's copy and the cluster's authority cannot make them."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.audit_chain import FIRST_PREVIOUS_HASH
from fleet.audit_findings import AuditFinding
from fleet.identity import NodeKeys, show_fingerprint
from fleet.node_audit import NodeAuditKind, encode_detail, node_row_hash, writer_of
from fleet.node_keys import sign_rotation
from fleet.node_signatures import MAX_UNSIGNED_ROWS, NodeSignatures, signature_detail
from fleet.v1 import admin_pb2, gateway_pb2

NODE = "nd-1"
KEYS, OTHER, THIEF = NodeKeys.generate(), NodeKeys.generate(), NodeKeys.generate()
SIGNED = NodeAuditKind.CHAIN_SIGNED
WORK = NodeAuditKind.COMMAND_ENDED


class Chain:
    """A chain as the server would store it."""

    def __init__(self, chain: int = 0, node_id: str = NODE) -> None:
        self.rows: list[admin_pb2.AuditEntry] = []
        self._chain, self._node_id, self._hash = chain, node_id, FIRST_PREVIOUS_HASH

    def add(self, kind: NodeAuditKind, **detail: Any) -> "Chain":
        row = gateway_pb2.AuditRow(number=len(self.rows) + 1, at_ms=7, kind=kind.value, detail=encode_detail(detail))
        sha256 = node_row_hash(self._node_id, self._hash, row, chain=self._chain)
        self.rows.append(
            admin_pb2.AuditEntry(
                writer=writer_of(self._node_id, self._chain),
                number=row.number,
                kind=row.kind,
                detail=row.detail,
                previous_hash=self._hash,
                hash=sha256,
            )
        )
        self._hash = sha256
        return self

    def work(self, count: int = 1) -> "Chain":
        for number in range(count):
            self.add(WORK, number=number)
        return self

    def sign(self, keys: NodeKeys = KEYS) -> "Chain":
        return self.add(SIGNED, **self.signature(keys))

    def signature(self, keys: NodeKeys = KEYS, **changes: Any) -> dict[str, str]:
        row = {"node_id": self._node_id, "chain": self._chain, "number": len(self.rows), "row_hash": self._hash}
        return signature_detail(keys, **(row | changes))

    def rotate(self, old: NodeKeys, new: NodeKeys) -> "Chain":
        statement = sign_rotation(cluster_id="c", node_id=self._node_id, old=old, new=new, issued_at_ms=5)
        return self.add(
            NodeAuditKind.CREDENTIAL_STORED, subject="node_keys", statement=statement.SerializeToString().hex()
        )


def read(*chains: Chain) -> NodeSignatures:
    signatures = NodeSignatures()
    for chain in chains:
        for row in chain.rows:
            signatures.add_row(row)
    signatures.finish()
    return signatures


def finding(*chains: Chain) -> str:
    with pytest.raises(AuditFinding) as caught:
        read(*chains)
    return caught.value.code


def test_a_signed_chain_holds_and_says_by_which_keys_and_up_to_where() -> None:
    found = read(Chain().work(3).sign().work(2).sign().work(4))
    assert found.fingerprints == {NODE: show_fingerprint(KEYS.fingerprint)}
    assert (found.unsigned_rows, found.replaced) == (4, [])


def test_new_keys_count_that_the_old_ones_named() -> None:
    found = read(Chain().work().sign().rotate(KEYS, OTHER).work().sign(OTHER).work().sign(OTHER))
    assert found.fingerprints == {NODE: show_fingerprint(OTHER.fingerprint)}


@pytest.mark.parametrize(
    ("chain", "code"),
    [
        (Chain().work().sign().work().sign(THIEF), "NODE_KEY_CHANGED"),
        (Chain().work().sign().rotate(THIEF, THIEF).sign(THIEF), "NODE_KEY_CHANGED"),
        (Chain().work().sign().rotate(THIEF, OTHER).sign(OTHER), "NODE_KEY_CHANGED"),
        (Chain().work().sign().rotate(KEYS, OTHER).sign(THIEF), "NODE_KEY_CHANGED"),
        *[
            (chain.add(SIGNED, **chain.signature(**changes)), "NODE_SIGNATURE_WRONG")
            for chain, changes in (
                (Chain().work(), {"row_hash": b"x" * 32}),
                (Chain().work(), {"number": 2}),
                (Chain().work(), {"chain": 1}),
                (Chain().work(), {"node_id": "nd-2"}),
            )
        ],
        (Chain().work().add(SIGNED), "NODE_SIGNATURE_WRONG"),
        (Chain().work().add(SIGNED, signed="zz"), "NODE_SIGNATURE_WRONG"),
        (Chain().work().add(SIGNED, signed="00" * 99), "NODE_SIGNATURE_WRONG"),
        (Chain().work().add(SIGNED, signed=[1]), "NODE_SIGNATURE_WRONG"),
        (Chain().work(MAX_UNSIGNED_ROWS + 1).sign(), "NODE_UNSIGNED"),
        (Chain().sign().work(MAX_UNSIGNED_ROWS + 1), "NODE_UNSIGNED"),
    ],
)
def test_what_the_node_did_not_sign_is_found(chain: Chain, code: str) -> None:
    assert finding(chain) == code
    assert finding(chain, Chain(node_id="nd-2").work().sign()) == code


def test_another_machine_goes_on_in_another_chain_with_its_own_keys_and_that_is_told() -> None:
    found = read(Chain().work().sign(), Chain(1).work().sign(OTHER).work().sign(OTHER))
    assert [text.split()[:4] for text in found.replaced] == [[NODE, "signs", "chain", "1"]]
    assert finding(Chain().sign(), Chain(1).sign(OTHER).sign(THIEF)) == "NODE_KEY_CHANGED"


@given(st.data())
def test_a_chain_that_was_rebuilt_from_any_row_on_is_found(data: st.DataObject) -> None:
    """Whoever has the server's copy and no key of the node keeps what stands before, and makes up the rest."""
    true = Chain()
    steps = data.draw(st.lists(st.booleans(), min_size=2, max_size=12))
    for signs in [False, True, *steps, False, True]:
        if signs:
            true.sign()
        else:
            true.work()
    read(true)
    cut = data.draw(st.integers(2, len(true.rows) - 2))
    forged = _rebuilt(true.rows, cut)
    if any(row.kind == SIGNED for row in forged.rows[cut:]):
        assert finding(forged) in ("NODE_SIGNATURE_WRONG", "NODE_KEY_CHANGED")


def _rebuilt(rows: Sequence[admin_pb2.AuditEntry], cut: int) -> Chain:
    forged = Chain()
    for row in rows:
        if row.number <= cut:
            forged.rows.append(row)
            forged._hash = row.hash
        elif row.kind == SIGNED and row.number % 2:
            forged.sign(THIEF)
        elif row.kind == SIGNED:
            forged.rows.append(row)
            forged.rows[-1].previous_hash = forged._hash
        else:
            forged.add(WORK, forged=True)
    return forged
