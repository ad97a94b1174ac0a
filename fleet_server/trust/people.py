"""The people of a cluster as the server keeps them: operators' public keys, and what owners signed.

The server stores and shows, and puts what owners signed into the trust bundle; nodes judge it against their own pin,
with no trust in the server. What it checks on the way in are the same pure rules (`fleet.people`), so that whoever
signs hears at once what a node would refuse. The first owner is the one of the activation manifest; without strict
mode, whom somebody with the role owner names first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from google.protobuf.message import DecodeError

from fleet import envelope, people
from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.key_possession import PossessionError, verify_possession
from fleet.logs import get_logger
from fleet.people import CLOCK_SLACK_MS, People
from fleet.trust import TrustState
from fleet.v1 import admin_pb2, trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database, IntegrityError
from fleet_server.database.writer import Transaction
from fleet_server.trust import store
from fleet_server.trust.people_store import OperatorKeyRow, PeopleStore
from fleet_server.trust.secrets import Secrets

log = get_logger(__name__)

MAX_KEYS_PER_OPERATOR = 8
_MAX_REMEMBERED = 4096
_POSSESSION = {"MALFORMED": Reason.INVALID_ARGUMENT, "CLOCK_SKEW": Reason.CLOCK_SKEW}


class ClusterPeople:
    """Operators' keys and owners' statements of one cluster.

    Args:
        database: where they rest.
        secrets: for the MACs of their rows.
        clock: for what is stored, and for what people's clocks are compared with.
        audit: told of every change.
        bundle: the newest.
        publish: makes a new one if what it carries has changed.
    """

    def __init__(
        self,
        *,
        database: Database,
        secrets: Secrets,
        clock: Clock,
        audit: AuditService,
        bundle: Callable[[], TrustState],
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._bundle = bundle
        self._publish = publish
        self._store = PeopleStore(secrets.row_mac("operator_keys"), secrets.row_mac("cluster_people"))
        self._first_owner_key: Callable[[], bytes] = bytes
        self._told = False
        self._told_keys: set[str] = set()
        self._in_force: tuple[tuple[int, int], People] | None = None
        self._covered: dict[str, bool] = {}

    def expect_first_owner(self, key: Callable[[], bytes]) -> None:
        """Take nobody as the first owner but who holds that raw public key; empty for whoever comes first."""
        self._first_owner_key = key

    # -- operators' keys -----------------------------------------------------------------------------------------------
    async def enroll_key(self, operator: str, signed: trust_pb2.Signed) -> OperatorKeyRow:
        """Take an operator's public key, which signed the statement; the same one again changes nothing.

        Raises:
            Refusal: INVALID_ARGUMENT for no key; BAD_PROOF when it did not sign for this operator and cluster;
                CLOCK_SKEW; CONFLICT when it is another operator's, or there are too many.
        """
        cluster_id, now_ms = self._bundle().cluster_id, self._clock.now_ms()
        try:
            public_key = verify_possession(signed, cluster_id=cluster_id, operator=operator, now_ms=now_ms)
        except PossessionError as error:
            raise Refusal(
                _POSSESSION.get(error.reason, Reason.BAD_PROOF), error.detail, metadata={"why": error.reason}
            ) from error
        key_id = envelope.key_id(public_key)
        row = OperatorKeyRow(key_id, cluster_id, operator, public_key, now_ms)

        def work(tx: Transaction) -> OperatorKeyRow | Refusal:
            own = [each for each in self._store.keys(tx.conn, row.cluster_id)[0] if each.operator == operator]
            standing = next((each for each in own if each.key_id == key_id), None)
            if standing is not None:
                return standing
            if self._store.holder(tx.conn, key_id) is not None:
                return Refusal(Reason.CONFLICT, "another operator enrolled this key: make one of your own")
            if len(own) >= MAX_KEYS_PER_OPERATOR:
                return Refusal(Reason.CONFLICT, f"you enrolled {MAX_KEYS_PER_OPERATOR} keys already: use one of them")
            self._store.insert_key(tx.conn, row)
            detail: dict[str, JSON] = {"public_key": public_key.hex()}
            self._audit.append(tx, AuditKind.OPERATOR_KEY_ENROLLED, actor=operator, subject=key_id.hex(), detail=detail)
            return row

        try:
            enrolled = await self._database.write(work)
        except IntegrityError:  # another replica was given the same key at this moment: its row is there now
            enrolled = await self._database.write(work)
        return _or_raise(enrolled)

    async def keys(self) -> list[OperatorKeyRow]:
        """Every enrolled key, by operator, oldest first. A row that was changed around the server is left out, and the
        audit tells it once."""
        found, tampered = await self._database.read(lambda conn: self._store.keys(conn, self._bundle().cluster_id))
        for key_id in sorted(tampered - self._told_keys):
            self._told_keys.add(key_id)
            log.error("operator_key_tampered", key_id=key_id)
            await self._database.write(partial(self._tell_tampered, key_id))
        return found

    def _tell_tampered(self, key_id: str, tx: Transaction) -> None:
        self._audit.append(tx, AuditKind.OPERATOR_KEY_QUARANTINED, actor="server", subject=key_id, detail={})

    # -- what owners signed --------------------------------------------------------------------------------------------
    async def put(self, actor: str, request: admin_pb2.PutOwnerStatementRequest) -> None:
        """Take one statement of the owner, and publish it to the nodes.

        Raises:
            Refusal: OWNER_STATEMENT_REFUSED with the rule's reason in the metadata; CONFLICT when it changes nothing;
                CLOCK_SKEW when it was signed in the future; QUARANTINED when what stood was changed around the server.
        """
        kind = request.WhichOneof("statement")

        def work(tx: Transaction) -> Refusal | None:
            store.authority(tx.conn, self._bundle().cluster_id, lock=True)  # two uploads at once take turns
            kept, intact = self._store.people(tx.conn, self._bundle().cluster_id)
            if not intact:
                return Refusal(
                    Reason.QUARANTINED, "the record of owners was changed around the server: restore it from a backup"
                )
            try:
                taken = self._take(verified(self._bundle().cluster_id, kept), request)
            except Refusal as refusal:  # raised from here it would roll back the whole group
                return refusal
            self._store.put_people(tx.conn, taken.cluster_id, people.kept_form(taken))
            self._audit.append(
                tx, AuditKind.OWNER_STATEMENT_ACCEPTED, actor=actor, subject=str(kind), detail=_told(request)
            )
            return None

        refusal = await self._database.write(work)
        if refusal is not None:
            raise refusal
        try:
            await self._publish()
        except Refusal as delayed:
            log.warning("bundle_renewal_delayed", reason=delayed.reason, detail=delayed.detail)

    def policy_covers(self, action: str) -> bool:
        """Whether the owner's policy, as the newest bundle carries it, asks for signatures before that action. Any
        thread."""
        bundle = self._bundle()
        if self._in_force is None or self._in_force[0] != bundle.version:
            said = trust_pb2.TrustBundleStatement.FromString(bundle.signed.statement)
            self._in_force, self._covered = (bundle.version, verified(bundle.cluster_id, said)), {}
        covers = self._covered.get(action)
        if covers is None:
            if len(self._covered) >= _MAX_REMEMBERED:
                self._covered = {}
            covers = self._covered[action] = self._in_force[1].protects(action)
        return covers

    async def kept(self) -> trust_pb2.TrustBundleStatement:
        """What owners signed: `owners`, `policy` and `role_grants`."""
        return await self._database.read(lambda conn: self._store.people(conn, self._bundle().cluster_id)[0])

    def kept_for_bundle(self, tx: Transaction, cluster_id: str) -> trust_pb2.TrustBundleStatement:
        """What a bundle is to carry. Nothing when the row was changed around the server: nodes go on with what they
        verified, and the audit tells it once."""
        kept, intact = self._store.people(tx.conn, cluster_id)
        if not intact and not self._told:
            self._told = True
            log.error("owner_statements_tampered")
            self._audit.append(tx, AuditKind.OWNER_STATEMENT_QUARANTINED, actor="server", subject=cluster_id, detail={})
        return kept

    def verified(self, conn: Connection) -> People:
        """Who decides about protected actions, as far as the server knows; nobody when the row was changed around
        it."""
        return verified(self._bundle().cluster_id, self._store.people(conn, self._bundle().cluster_id)[0])

    def _take(self, held: People, request: admin_pb2.PutOwnerStatementRequest) -> People:
        kind = request.WhichOneof("statement")
        if not held.pin and kind == "owner":
            pin, expected = _pin_of([request.owner]), self._first_owner_key()
            if expected and pin != people.owner_pin(expected):
                raise Refusal(
                    Reason.OWNER_STATEMENT_REFUSED, "the activation manifest names another key as the first owner's"
                )
            held = People(held.cluster_id, pin)
        taken, refused = people.take(
            held,
            owners=[request.owner] if kind == "owner" else (),
            policy=request.policy if kind == "policy" else None,
            grants=[request.role_grant] if kind == "role_grant" else (),
        )
        if refused:
            why = refused[0]
            raise Refusal(Reason.OWNER_STATEMENT_REFUSED, why.detail, metadata={"why": str(why.reason)})
        if taken is held:
            raise Refusal(Reason.CONFLICT, "the statement changes nothing: that one, or a newer one, stands already")
        if max(taken.issued_at_ms()) > self._clock.now_ms() + CLOCK_SLACK_MS:
            raise Refusal(Reason.CLOCK_SKEW, "the statement is from the future: set the clock of the owner's machine")
        return taken


def verified(cluster_id: str, kept: trust_pb2.TrustBundleStatement) -> People:
    """People from what was kept, under the first owner that it names."""
    return people.restore(cluster_id, _pin_of(kept.owners), kept)


def _pin_of(owners: Sequence[trust_pb2.Signed]) -> bytes:
    if not owners:
        return b""
    try:
        return people.owner_pin(trust_pb2.OwnerStatement.FromString(owners[0].statement).successor_key)
    except DecodeError as error:
        raise Refusal(Reason.OWNER_STATEMENT_REFUSED, "that is no owner statement") from error


def _told(request: admin_pb2.PutOwnerStatementRequest) -> dict[str, JSON]:
    """What the audit says of a statement that was verified."""
    match request.WhichOneof("statement"):
        case "owner":
            owner = trust_pb2.OwnerStatement.FromString(request.owner.statement)
            return {"generation": owner.generation, "key_id": envelope.key_id(owner.successor_key).hex()}
        case "policy":
            policy = trust_pb2.PolicyStatement.FromString(request.policy.statement)
            rules: list[JSON] = [
                f"{rule.action_glob}: {rule.required} of {','.join(rule.roles)}" for rule in policy.rules
            ]
            return {"version": policy.version, "not_after_ms": policy.not_after_ms, "rules": rules}
        case _:
            grant = trust_pb2.RoleGrantStatement.FromString(request.role_grant.statement)
            return {
                "key_id": envelope.key_id(grant.operator_key).hex(),
                "name": grant.operator_name,
                "role": grant.role,
                "not_after_ms": grant.not_after_ms,
            }


def _or_raise(answer: OperatorKeyRow | Refusal) -> OperatorKeyRow:
    if isinstance(answer, Refusal):
        raise answer
    return answer
