"""Enrolling: prove the keys, print the fingerprint, wait for the operator, verify the bootstrap, become a member.

docs/protocol.md, "Enrollment". A restart at any moment resumes: keys and the pending enrollment are durable before
they are used, and `Enroll` is idempotent by token and keys.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from google.protobuf.message import DecodeError

from fleet import envelope, jointoken, sealing, trust, trust_chain
from fleet.backoff import Backoff, BackoffPolicy
from fleet.clock import Clock
from fleet.envelope import Domain, EnvelopeError
from fleet.errors import Advice, Reason, Refusal, advice
from fleet.identity import NodeKeys, has_node_keys, load_node_keys, store_node_keys
from fleet.secrets import Secret
from fleet.v1 import enrollment_pb2, trust_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import (
    BundleFile,
    Membership,
    PendingEnrollment,
    load_pending,
    save_membership,
    save_pending,
)
from fleet_node.link.caller import GatewayCaller, open_caller
from fleet_node.link.following import learn_cas

T = TypeVar("T")
_POLL_BACKOFF = BackoffPolicy(initial_s=1.0, maximum_s=30.0)
MAX_POLL_INTERVAL_S = 600.0
MAX_TELEMETRY_INTERVAL_S = 86_400.0
MAX_IN_FLIGHT = 1024
"""What the node's own settings allow at most: what a server asks for beyond it is cut, not obeyed."""


@dataclass(frozen=True, slots=True)
class Pins:
    """What the node's own configuration pins beyond the token. Empty means not pinned."""

    authority_key: bytes = b""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class Applicant:
    """What a node says of itself."""

    name: str
    labels: Mapping[str, str]
    version: str


class EnrollmentError(Exception):
    """Enrolling failed for good; the message says what to do."""


class TokenError(EnrollmentError):
    """The join token is damaged, or not of the authority that the node's configuration pins."""


class EnrollmentRefusedError(EnrollmentError):
    """The server, or an operator, said no."""


class EnrollmentService:
    """The node's half of enrollment.

    Args:
        folder: state folder, locked by this process.
        clock: for polling.
        pins: from the node's configuration.
        poll_interval_s: seconds between polls; None takes the server's wish.
        retrying: told about every failed try and the seconds until the next, for the person who waits.
        joining: called with the node id before the membership is stored, to make what a member must have. Whatever it
            raises leaves the enrollment as it was; it may be called again for the same node.
    """

    def __init__(
        self,
        *,
        folder: StateFolder,
        clock: Clock,
        pins: Pins,
        poll_interval_s: float | None,
        retrying: Callable[[Refusal, float], None],
        joining: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._pins = pins
        self._poll_interval_s = poll_interval_s
        self._retrying = retrying
        self._joining = joining

    def keys(self) -> NodeKeys:
        """This node's keys, made and stored at first use.

        Raises:
            EnrollmentError: they are not the ones that the configuration pins.
        """
        if not has_node_keys(self._folder.path):
            store_node_keys(self._folder.path, NodeKeys.generate())
        keys = load_node_keys(self._folder.path)
        if self._pins.fingerprint and keys.fingerprint != self._pins.fingerprint:
            raise EnrollmentError("this node's keys are not the ones whose fingerprint its configuration pins")
        return keys

    async def apply(self, token_text: str, applicant: Applicant) -> PendingEnrollment:
        """Send the request, or find the one that was sent before a restart.

        Raises:
            TokenError: the token is damaged, or of another authority than the pinned one.
            EnrollmentRefusedError: the server refused for good.
            EnrollmentError: the keys are not the pinned ones, or the answer is about others.
        """
        token, said = self._read_token(token_text)
        pending = load_pending(self._folder.enrollment)
        if pending is not None and (pending.token_id, pending.authority_key) == (said.token_id, said.authority_key):
            return pending
        keys = self.keys()
        line = _Line(
            endpoints=tuple(said.endpoints),
            ca_der=said.tls_ca_der,
            cluster_id=said.cluster_id,
            authority_key=said.authority_key,
            bundle_version=(said.authority_generation, said.bundle_number),
        )
        try:
            answer = await self._ask(line, lambda caller: caller.enroll(_request(token, said, keys, applicant)))
        finally:
            await line.hang_up()
        if answer.fingerprint != keys.fingerprint:
            raise EnrollmentError("the server computed another fingerprint: somebody changed the request on its way")
        pending = PendingEnrollment(
            token_id=said.token_id,
            enrollment_id=answer.enrollment_id,
            cluster_id=said.cluster_id,
            endpoints=tuple(said.endpoints),
            tls_ca_der=said.tls_ca_der,
            authority_key=said.authority_key,
            owner_pin=token.owner_pin,
            poll_interval_s=float(answer.poll_interval_s),
            bundle_version=(said.authority_generation, said.bundle_number),
            labels=dict(applicant.labels),
        )
        save_pending(self._folder.enrollment, pending)
        return pending

    async def wait_decided(
        self, pending: PendingEnrollment, *, undecided: Callable[[], None] | None = None
    ) -> Membership:
        """Poll until an operator has decided, and store the membership.

        Args:
            pending: what was asked.
            undecided: called once, when the server has said that nobody has decided yet.

        Raises:
            EnrollmentRefusedError: an operator rejected this node, or the server does not know it any more.
            EnrollmentError: the bootstrap does not verify.
        """
        keys = self.keys()
        line = _Line(
            endpoints=pending.endpoints,
            ca_der=pending.tls_ca_der,
            cluster_id=pending.cluster_id,
            authority_key=pending.authority_key,
            bundle_version=pending.bundle_version,
        )
        try:
            while True:
                answer = await self._ask(line, lambda caller: caller.get_bootstrap(_poll(pending, keys)))
                if answer.state == enrollment_pb2.ENROLLMENT_STATE_APPROVED:
                    whole_chain = partial(_whole_chain, cluster_id=pending.cluster_id, answer=answer)
                    chain = await self._ask(line, whole_chain)
                    return self._become_member(pending, keys, answer.bootstrap, chain)
                if answer.state == enrollment_pb2.ENROLLMENT_STATE_REJECTED:
                    # Nobody signed this: whoever terminates TLS could say it. So the enrollment stands, and asking
                    # again asks the same; a new token begins another.
                    raise EnrollmentRefusedError(
                        f"an operator rejected this node ({answer.reason[:200] or 'no reason given'}): ask for a new"
                        " token"
                    )
                if undecided is not None:
                    undecided()
                    undecided = None
                await self._clock.sleep(self._poll_interval_s or min(answer.poll_interval_s or 2, MAX_POLL_INTERVAL_S))
        finally:
            await line.hang_up()

    def _read_token(self, text: str) -> tuple[enrollment_pb2.JoinToken, enrollment_pb2.JoinTokenStatement]:
        try:
            token = jointoken.decode(text)
            said = trust.verify_join_token(token)
        except trust.TrustError as error:
            raise TokenError(error.detail) from error
        if self._pins.authority_key and said.authority_key != self._pins.authority_key:
            raise TokenError("the join token is of another authority than the one that this node's config pins")
        return token, said

    async def _ask(self, line: _Line, call: Callable[[GatewayCaller], Awaitable[T]]) -> T:
        backoff = Backoff(_POLL_BACKOFF)
        while True:
            try:
                return await call(await line.caller())
            except Refusal as refusal:
                if advice(refusal.reason) is Advice.STOP:
                    raise EnrollmentRefusedError(refusal.detail) from refusal
                await line.hang_up()
                delay_s = backoff.next_delay_s(refusal.retry_after_s)
                self._retrying(refusal, delay_s)
                await self._clock.sleep(delay_s)

    def _become_member(
        self,
        pending: PendingEnrollment,
        keys: NodeKeys,
        bootstrap: trust_pb2.Signed,
        chain: Sequence[trust_pb2.Signed],
    ) -> Membership:
        try:
            # From the token's authority on: it may have been rotated since the token was made.
            links = trust_chain.from_pin(chain, cluster_id=pending.cluster_id, authority_key=pending.authority_key)
            signers = trust_chain.authorities(links)
            raw = envelope.verify(bootstrap, domain=Domain.BOOTSTRAP, keys=signers)
        except (trust.TrustError, EnvelopeError) as error:
            raise EnrollmentError(
                "the bootstrap is not signed by the authority that the join token pinned, or one that followed it"
                f" ({error})"
            ) from error
        try:
            said = enrollment_pb2.BootstrapStatement.FromString(raw)
        except DecodeError as error:
            raise EnrollmentError("the bootstrap is signed, but it is none") from error
        if (said.enrollment_id, said.cluster_id) != (pending.enrollment_id, pending.cluster_id):
            raise EnrollmentError("the bootstrap is for another enrollment")
        if said.fingerprint != keys.fingerprint:
            raise EnrollmentError("the bootstrap is for other keys than this node's")
        info = sealing.sealing_info(sealing.Purpose.API_KEY, said.cluster_id, said.node_id, keys.fingerprint)
        try:
            api_key = sealing.unseal(said.sealed_api_key, keys.sealing, info).decode()
            links += trust.steps(links[-1], [said.trust_bundle])
        except (sealing.SealingError, trust.TrustError, UnicodeDecodeError) as error:
            raise EnrollmentError(f"the bootstrap is signed, but what it holds is not good: {error}") from error
        membership = Membership(
            cluster_id=said.cluster_id,
            node_id=said.node_id,
            name=said.name,
            site=said.site,
            endpoints=links[-1].endpoints or pending.endpoints,
            tls_ca_der=pending.tls_ca_der,
            authority_key=pending.authority_key,
            owner_pin=pending.owner_pin,
            api_key=Secret(api_key),
            telemetry_interval_s=float(min(said.parameters.telemetry_interval_s or 10, MAX_TELEMETRY_INTERVAL_S)),
            max_in_flight=min(said.parameters.max_in_flight or 32, MAX_IN_FLIGHT),
            labels=pending.labels,
        )
        file = BundleFile(self._folder.bundle, cluster_id=membership.cluster_id, authority_key=membership.authority_key)
        try:
            file.save(*links)
        except trust.TrustError as error:
            raise EnrollmentError(
                f"the chain of authorities is too long: ask for a new join token ({error})"
            ) from error
        self._joining(membership.node_id)
        save_membership(self._folder.membership, membership)
        self._folder.enrollment.unlink(missing_ok=True)
        return membership


async def _whole_chain(
    caller: GatewayCaller, cluster_id: str, answer: enrollment_pb2.GetBootstrapResponse
) -> Sequence[trust_pb2.Signed]:
    """The chain of a bootstrap, with what did not fit beside it. Nothing in it is verified yet."""
    chain = list(answer.bundle_chain)
    if answer.more_bundles:
        asked = trust_pb2.GetTrustChainRequest(cluster_id=cluster_id)
        if chain:
            try:
                last = trust.claimed(chain[-1])
            except trust.TrustError:
                return chain  # who judges it says what is wrong
            asked.from_generation, asked.from_number = last.generation, last.number
        async for part in caller.trust_chain(asked):
            chain += part
    return chain


class _Line:
    """A connection that is opened anew after every failure: the wait for an operator outlives certificates, their CA
    and gateways, and a channel is tied to the leaf that it saw first."""

    def __init__(
        self,
        *,
        endpoints: tuple[str, ...],
        ca_der: bytes,
        cluster_id: str,
        authority_key: bytes,
        bundle_version: tuple[int, int],
    ) -> None:
        self._endpoints = endpoints
        self._cas: tuple[bytes, ...] = (ca_der,)
        self._cluster_id = cluster_id
        self._authority_key = authority_key
        self._at_least = bundle_version
        self._caller: GatewayCaller | None = None

    async def caller(self) -> GatewayCaller:
        if self._caller is None:
            self._caller = await self._open()
        return self._caller

    async def _open(self) -> GatewayCaller:
        try:
            return await open_caller(self._endpoints, self._cas)
        except Refusal as refusal:
            if refusal.reason is not Reason.WRONG_CERTIFICATE:
                raise
            cas = await learn_cas(
                self._endpoints,
                cluster_id=self._cluster_id,
                authority_key=self._authority_key,
                at_least=self._at_least,
            )
            if not cas:
                raise
        self._cas = cas
        return await open_caller(self._endpoints, cas)

    async def hang_up(self) -> None:
        if self._caller is not None:
            caller, self._caller = self._caller, None
            await caller.close()


def _request(
    token: enrollment_pb2.JoinToken,
    said: enrollment_pb2.JoinTokenStatement,
    keys: NodeKeys,
    applicant: Applicant,
) -> enrollment_pb2.EnrollRequest:
    statement = enrollment_pb2.EnrollStatement(
        token_id=said.token_id,
        token_secret_sha256=hashlib.sha256(token.secret).digest(),
        cluster_id=said.cluster_id,
        identity_key=keys.identity.public_key,
        sealing_key=keys.sealing_public,
        name=applicant.name,
        labels=dict(applicant.labels),
        version=applicant.version,
    )
    signed = keys.identity.sign(Domain.ENROLL, statement.SerializeToString())
    return enrollment_pb2.EnrollRequest(signed=signed, token_secret=token.secret)


def _poll(pending: PendingEnrollment, keys: NodeKeys) -> enrollment_pb2.GetBootstrapRequest:
    statement = enrollment_pb2.BootstrapPollStatement(
        enrollment_id=pending.enrollment_id, nonce=secrets.token_bytes(32)
    )
    signed = keys.identity.sign(Domain.BOOTSTRAP_POLL, statement.SerializeToString())
    return enrollment_pb2.GetBootstrapRequest(signed=signed)
