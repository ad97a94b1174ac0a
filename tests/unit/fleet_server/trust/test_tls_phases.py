"""The life of a TLS CA as tables of cases, most of them refusals."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fleet import tls, tls_certificates
from fleet.errors import Reason, Refusal
from fleet_server.trust import tls_phases
from fleet_server.trust.tls_phases import TlsCa, TlsPhase

NOW_MS = 1_790_000_000_000
NOW = dt.datetime.fromtimestamp(NOW_MS / 1000, dt.UTC)
P, A, G, R, X = TlsPhase.PREPARED, TlsPhase.ACTIVE, TlsPhase.OUTGOING, TlsPhase.RETIRED, TlsPhase.REVOKED


def ca(number: int, phase: TlsPhase, *, own: bool = True, since_ms: int = 0) -> TlsCa:
    der = b"der %d" % number
    has_key = own and phase is not X
    return TlsCa(tls.certificate_sha256(der), der, own, has_key, phase, number, since_ms or number, (1, number))


def after_step(cas: list[TlsCa], step: Callable[[list[TlsCa]], list[tls_phases.TlsChange]]) -> list[TlsPhase]:
    return [each.phase for each in tls_phases.after(cas, step(cas))]


# -- steps ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("step", "before", "outcome"),
    [
        ("activate", [P], [A]),
        ("activate", [A, P], [G, A]),
        ("activate", [G, A, P], [G, G, A]),
        ("activate", [G, A], [G, A]),  # again: nothing happens
        ("activate", [A, G], "nothing goes back"),
        ("activate", [A, R], "nothing goes back"),
        ("activate", [A, X], "nothing goes back"),
        ("retire", [A, G], [A, R]),
        ("retire", [A, R], [A, R]),  # again
        ("retire", [G, A], "is ACTIVE"),
        ("retire", [A], "is ACTIVE"),
        ("retire", [A, P], "was never shown"),
        ("retire", [A, X], "is revoked"),
        ("revoke", [A, P], [A, X]),
        ("revoke", [A, G], [A, X]),
        ("revoke", [A, R], [A, X]),
        ("revoke", [A, X], [A, X]),  # again
        ("revoke", [P, A], [A, X]),  # the PREPARED one takes its place at once
        ("revoke", [G, A], "makes its successor first"),
        ("revoke", [A], "makes its successor first"),
    ],
)
def test_what_a_step_makes_of_the_last_ca(step: str, before: list[TlsPhase], outcome: list[TlsPhase] | str) -> None:
    cas = [ca(number, phase) for number, phase in enumerate(before, 1)]
    steps: dict[str, Callable[[list[TlsCa]], list[tls_phases.TlsChange]]] = {
        "activate": lambda cas: tls_phases.activate(cas, cas[-1]),
        "retire": lambda cas: tls_phases.retire(cas[-1]),
        "revoke": lambda cas: tls_phases.revoke(cas, cas[-1]),
    }
    if isinstance(outcome, list):
        assert after_step(cas, steps[step]) == outcome
        return
    with pytest.raises(Refusal, match=outcome) as refused:
        after_step(cas, steps[step])
    assert refused.value.reason is Reason.CONFLICT


def test_the_last_own_ca_behind_one_from_outside_is_not_revoked_until_another_is_prepared() -> None:
    own, outside = ca(1, G), ca(2, A, own=False)
    with pytest.raises(Refusal, match="behind a CA from outside"):
        tls_phases.revoke([own, outside], own)
    assert tls_phases.revoke([own, outside, ca(3, P)], own)


@pytest.mark.parametrize(
    ("standing", "brought", "why"),
    [
        ([A, P], b"", "is PREPARED already"),
        ([A, P], b"another", "is PREPARED already"),
        ([A, G, G, G], b"", "more do not fit"),
        ([A, G, G, G], b"another", "more do not fit"),
        ([A], b"der 1", "is ACTIVE already"),
        ([A, G], b"der 2", "is OUTGOING already"),
        ([A, R], b"der 2", "is RETIRED already"),
        ([A, X], b"der 2", "is REVOKED already"),
    ],
)
def test_what_is_not_prepared(standing: list[TlsPhase], brought: bytes, why: str) -> None:
    cas = [ca(number, phase) for number, phase in enumerate(standing, 1)]
    with pytest.raises(Refusal, match=why) as refused:
        tls_phases.check_prepare(cas, brought)
    assert refused.value.reason is Reason.CONFLICT


def test_bringing_the_prepared_one_again_answers_it_and_ended_ones_take_no_room() -> None:
    waiting = ca(2, P, own=False)
    assert tls_phases.check_prepare([ca(1, A), waiting], b"der 2") == waiting
    ended = [ca(number, R) for number in range(2, 12)]
    assert tls_phases.check_prepare([ca(1, A), *ended], b"") is None


def test_nodes_are_told_the_active_one_first_and_nothing_that_has_ended() -> None:
    cas = [ca(1, R), ca(2, G), ca(3, A), ca(4, P), ca(5, X)]
    assert [each.created_at_ms for each in tls_phases.published(cas)] == [3, 4, 2]


def test_of_two_active_ones_the_later_counts() -> None:
    """A row that was put back: the replica that finds it knows nothing of before."""
    assert tls_phases.active([ca(1, A, since_ms=5), ca(2, A, since_ms=9)]) == ca(2, A, since_ms=9)


@pytest.mark.parametrize(
    ("cas", "kept"),
    [
        ([ca(1, A)], [1]),
        ([ca(1, A), ca(2, P)], [1, 2]),
        ([ca(1, G), ca(2, A)], [2]),
        ([ca(1, R), ca(2, A)], [2]),
        ([ca(1, X), ca(2, A)], [2]),
        ([ca(1, G), ca(2, A, own=False)], [1]),
        ([ca(1, R), ca(2, A, own=False)], [1]),
        ([ca(1, G, since_ms=3), ca(2, G, since_ms=4), ca(3, A, own=False)], [2]),
        ([ca(1, X), ca(2, A, own=False), ca(3, P)], [3]),
    ],
)
def test_a_private_key_is_kept_only_while_it_is_of_use(cas: list[TlsCa], kept: list[int]) -> None:
    assert [each.created_at_ms for each in tls_phases.after(cas, []) if each.has_key] == kept


def test_a_ca_whose_key_was_erased_never_signs_again() -> None:
    keyless = replace(ca(1, G), has_key=False)
    assert tls_phases.issuer([keyless, ca(2, G), ca(3, A, own=False)]) == ca(2, G)
    with pytest.raises(Refusal, match="behind a CA from outside"):
        tls_phases.revoke([keyless, ca(2, G), ca(3, A, own=False)], ca(2, G))


# -- rows that were put back ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("found", "known", "named", "becomes"),
    [
        (A, G, True, G),
        (P, A, True, A),
        (G, R, False, R),
        (G, X, False, X),
        (A, None, True, None),
        (P, None, True, None),
        (P, None, False, X),  # a bundle dropped it
        (A, None, False, X),
        (G, None, False, X),
        (R, None, False, None),
        (X, None, False, None),
        (R, G, False, None),  # another replica went on
        (X, A, False, None),
    ],
)
def test_a_row_that_was_put_back_gains_nothing(
    found: TlsPhase, known: TlsPhase | None, named: bool, becomes: TlsPhase | None
) -> None:
    standing = ca(1, found)
    before = [] if known is None else [replace(standing, phase=known)]
    changes = tls_phases.stepped_back(
        [standing], before, version=(1, 7), named_der=[standing.certificate_der] if named else []
    )
    assert [change.phase for change in changes] == ([] if becomes is None else [becomes])


def test_what_was_prepared_after_the_newest_bundle_has_not_stepped_back() -> None:
    fresh = replace(ca(2, P), first_bundle=(1, 8))
    assert tls_phases.stepped_back([fresh], [], version=(1, 7), named_der=[]) == []


# -- which certificates may become one --------------------------------------------------------------------------------
def certificate(
    key: object = None,
    *,
    is_ca: bool | None = True,
    may_sign: bool | None = True,
    begins: dt.datetime = NOW - dt.timedelta(days=1),
    ends: dt.datetime = NOW + dt.timedelta(days=400),
    hashed: SHA1 | SHA256 | None = None,
    padding: int = 0,
) -> bytes:
    made: ec.EllipticCurvePrivateKey = key or ec.generate_private_key(ec.SECP256R1())  # type: ignore[assignment]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "outside")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(made.public_key())
        .serial_number(7)
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if is_ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    if may_sign is not None:
        builder = builder.add_extension(
            x509.KeyUsage(True, False, False, False, False, may_sign, False, False, False), critical=True
        )
    if padding:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(padding)), critical=False
        )
    algorithm = None if isinstance(made, ed25519.Ed25519PrivateKey) else hashed or SHA256()
    return builder.sign(made, algorithm).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "der",
    [
        certificate(),
        certificate(ec.generate_private_key(ec.SECP384R1())),
        certificate(rsa.generate_private_key(65537, 2048)),
        certificate(may_sign=None),
        certificate(ends=NOW + dt.timedelta(days=31)),
    ],
)
def test_a_good_ca_may_be_prepared(der: bytes) -> None:
    tls_phases.check_certificate(der, NOW_MS)


UNFIT = {
    "not a CA": (certificate(is_ca=False), "no CA's certificate"),
    "says nothing of being a CA": (certificate(is_ca=None), "no CA's certificate"),
    "a server's certificate": (
        tls_certificates.make_leaf(tls_certificates.make_ca("x", NOW), ["gateway.example"], NOW).certificate_der,
        "no CA's certificate",
    ),
    "may not sign certificates": (certificate(may_sign=False), "keyCertSign"),
    "ended": (certificate(ends=NOW - dt.timedelta(seconds=1)), "has ended"),
    "ends now": (certificate(ends=NOW), "has ended"),
    "not begun": (certificate(begins=NOW + dt.timedelta(hours=1)), "not valid before"),
    "ends soon": (certificate(ends=NOW + dt.timedelta(days=29)), "at least 30 days"),
    "RSA of 1024 bits": (certificate(rsa.generate_private_key(65537, 1024)), "weak"),  # noqa: S505 - refused
    "a weak curve": (certificate(ec.generate_private_key(ec.SECP192R1())), "weak"),
    "Ed25519": (certificate(ed25519.Ed25519PrivateKey.generate()), "weak"),
    "too large": (certificate(padding=5000), "at most 4096"),
    "garbage": (b"0\x82 no certificate", "cannot be read"),
    "empty": (b"", "cannot be read"),
}


@pytest.mark.parametrize(("der", "why"), UNFIT.values(), ids=UNFIT.keys())
def test_a_certificate_that_is_unfit_is_refused_with_what_to_do(der: bytes, why: str) -> None:
    assert_unfit(der, why)


def test_a_certificate_of_a_dsa_key_is_unfit() -> None:
    assert_unfit(certificate(dsa.generate_private_key(2048)), "weak")  # too slow to make for whoever collects only


def assert_unfit(der: bytes, why: str) -> None:
    with pytest.raises(Refusal, match=why) as refused:
        tls_phases.check_certificate(der, NOW_MS)
    assert refused.value.reason is Reason.INVALID_ARGUMENT


def test_a_ca_is_read_from_pem_and_der_alone_and_one_at_a_time() -> None:
    der = certificate()
    pem = tls.der_to_pem(der)
    assert tls_phases.parse(pem) == tls_phases.parse(der) == der
    for text, why in ((pem + tls.der_to_pem(certificate()), "2 certificates"), (b"hello", "no certificate")):
        with pytest.raises(Refusal, match=why):
            tls_phases.parse(text)


# -- properties -------------------------------------------------------------------------------------------------------
MOVES = st.lists(
    st.tuples(st.sampled_from(["prepare", "bring", "activate", "retire", "revoke"]), st.integers(0, 9)), max_size=30
)


@given(MOVES)
def test_whatever_is_done_one_is_active_nothing_goes_back_and_the_server_can_always_show_something(
    moves: list[tuple[str, int]],
) -> None:
    cas = [ca(1, A)]
    for number, (move, which) in enumerate(moves, 2):
        before = cas
        target = cas[which % len(cas)]
        try:
            if move in ("prepare", "bring"):
                made = ca(number, P, own=move == "prepare")
                if tls_phases.check_prepare(cas, b"" if made.own else made.certificate_der) is None:
                    cas = [*cas, made]
            elif move == "activate":
                cas = tls_phases.after(cas, tls_phases.activate(cas, target), number)
            elif move == "retire":
                cas = tls_phases.after(cas, tls_phases.retire(target), number)
            else:
                cas = tls_phases.after(cas, tls_phases.revoke(cas, target), number)
        except Refusal:
            cas = before
        assert sum(each.phase is A for each in cas) == 1
        assert sum(each.phase is P for each in cas) <= 1
        assert 1 <= len(tls_phases.published(cas)) <= tls_phases.MAX_PUBLISHED
        assert tls_phases.published(cas)[0].phase is A
        assert all(now.phase >= then.phase for then, now in zip(before, cas, strict=False))
        issuer = tls_phases.issuer(cas)
        assert issuer is not None
        assert issuer.has_key
