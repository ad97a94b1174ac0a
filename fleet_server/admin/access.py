"""Operators: their tokens (only hashes are kept), their roles, and a record of what each of them calls.

Changes are audited by the room that makes them, in the same transaction. Calls are counted per operator and method
and audited in batches, so that a dashboard that polls does not bury what matters. The first refusal of a kind is
audited at once, those that follow are counted: a loop without the role writes one row every few seconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import token_bytes, token_hex

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.secrets import Secret
from fleet_server.admin import rules
from fleet_server.admin.rules import Role
from fleet_server.admin.store import Operator, OperatorStore
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction
from fleet_server.trust.secrets import Secrets

log = get_logger(__name__)

TOKEN_PREFIX = "fop1."
_TOKEN_BYTES = 32
_TOKEN_MAC_BYTES = 16
_TOKEN_CHARS = 64
_CACHE_S = 1.0
_MAX_CACHED = 1024
_FLUSH_S = 10.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    name: str
    role: Role
    operator_id: str = ""


class OperatorService:
    """Use cases around operators.

    Args:
        secrets: for the MAC of the table `operators`, and for the MAC in every token, which lets garbage cost no query.
    """

    def __init__(self, *, database: Database, clock: Clock, audit: AuditService, secrets: Secrets) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._store = OperatorStore(secrets.row_mac("operators"), audit.spent)
        self._token_key = secrets.derive("operator-token")
        self._cache: dict[bytes, tuple[float, Operator]] = {}
        self._calls: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._told_refusals: set[tuple[str, str]] = set()
        self._told: set[str] = set()

    async def authorise(self, token: str, method: str, request: object = None) -> Caller:
        """Who holds `token`, once they may call `method` with this request; the call is counted for the audit.

        Raises:
            Refusal: UNAUTHENTICATED or PERMISSION_DENIED.
        """
        caller = await self.check(token, method, request)
        self._calls[caller.name, method] += 1
        return caller

    async def check(self, token: str, method: str, request: object = None) -> Caller:
        """Who holds `token`, once they may call `method`. For a call that goes on: each of its answers is asked for.

        Raises:
            Refusal: UNAUTHENTICATED or PERMISSION_DENIED.
        """
        caller = await self.authenticate(token)
        try:
            rules.authorise(caller.role, rules.needed_role(method, request), method)
        except Refusal:
            await self._tell_refused(caller.name, method)
            raise
        return caller

    async def authenticate(self, token: str) -> Caller:
        """Who holds `token`, whatever they may do.

        Raises:
            Refusal: UNAUTHENTICATED.
        """
        if not token:
            raise Refusal(Reason.UNAUTHENTICATED, "an operator token is needed: run `fleetctl login`")
        operator = await self._authenticate(token)
        return Caller(operator.name, operator.role, operator.operator_id)

    async def create(self, actor: str, name: str, role_word: str) -> tuple[Operator, Secret[str]]:
        """A new operator and the token, which is never shown again.

        Raises:
            Refusal: bad name or role, or the name is taken.
        """
        rules.check_operator_name(name)
        role = rules.parse_role(role_word)
        token = self._new_token()
        operator = Operator("op-" + token_hex(8), name, role, self._clock.now_ms(), 0, intact=True)

        def work(tx: Transaction) -> None:
            taken = self._store.by_name(tx.conn, name) is not None
            if taken or not self._store.insert(tx.conn, operator, _hash(token.reveal())):
                raise Refusal(Reason.CONFLICT, f"an operator called {name!r} exists already: choose another name")
            self._audit.append(tx, AuditKind.OPERATOR_CREATED, actor=actor, subject=name, detail={"role": role.word})

        await self._database.write(work)
        return operator, token

    def make_owner(self, tx: Transaction, operator_id: str, name: str) -> Secret[str]:
        """Make an owner whom the installation's first owner signed for, or give that one a new token; the token.

        Raises:
            Refusal: bad name, or another operator has it.
        """
        rules.check_operator_name(name)
        token = self._new_token()
        operator = Operator(operator_id, name, Role.OWNER, self._clock.now_ms(), 0, intact=True)
        known = self._store.by_name(tx.conn, operator_id)
        if known is not None and known.operator_id == operator_id and known.intact and known.role is Role.OWNER:
            self._store.give_token(tx.conn, known, _hash(token.reveal()))
            tx.after_commit(self._cache.clear)
        elif known is not None or not self._store.insert(tx.conn, operator, _hash(token.reveal())):
            raise Refusal(Reason.CONFLICT, f"an operator called {name!r} exists already: choose another name")
        return token

    async def all(self) -> list[Operator]:
        """Every operator by name."""
        return await self._database.read(self._store.all)

    def may_order(self, conn: Connection, name: str) -> bool:
        """Whether an operator still has a token and a role that orders commands: what was ordered in its name waits."""
        operator = self._store.by_name(conn, name)
        return (
            operator is not None and operator.intact and not operator.revoked_at_ms and operator.role >= Role.OPERATOR
        )

    async def revoke(self, actor: str, name: str, *, may_end_owners: bool = True) -> Operator:
        """End an operator's token at once.

        Args:
            actor: who asks.
            name: of the operator, or its id.
            may_end_owners: whether it may be an owner's.

        Raises:
            Refusal: NOT_FOUND, it is the last owner (CONFLICT), or any owner's and it may not be.
        """
        now_ms = self._clock.now_ms()

        def work(tx: Transaction) -> Operator:
            # All of them: two replicas that each end one of the last two owners would leave none.
            everyone = self._store.all(tx.conn, lock=True)
            operator = next((each for each in everyone if name in (each.name, each.operator_id)), None)
            if operator is None:
                raise _no_operator(name)
            if operator.revoked_at_ms:
                return operator
            if operator.is_owner and not may_end_owners:
                raise Refusal(Reason.PERMISSION_DENIED, "only a platform admin ends an owner's token: ask one")
            if operator.role is Role.OWNER and sum(each.is_owner for each in everyone) == 1:
                raise Refusal(Reason.CONFLICT, "this is the last owner: create another one before you revoke it")
            self._store.revoke(tx.conn, operator.operator_id, now_ms)
            self._audit.append(tx, AuditKind.OPERATOR_REVOKED, actor=actor, subject=operator.name, detail={})
            tx.after_commit(self._cache.clear)
            revoked = self._store.by_name(tx.conn, operator.operator_id)
            return revoked or operator

        return await self._database.write(work)

    async def rotate_token(
        self, caller: Caller, name: str, *, may_rotate_owners: bool = True
    ) -> tuple[Operator, Secret[str]]:
        """Give an operator a new token, which is never shown again, and end the one before at once.

        Args:
            caller: who asks: everybody for themselves, owners for others.
            name: of the operator, or its id.
            may_rotate_owners: whether it may be another owner's.

        Raises:
            Refusal: INVALID_ARGUMENT without a name, NOT_FOUND, PERMISSION_DENIED, or it was revoked (CONFLICT).
        """
        if not name:
            raise Refusal(Reason.INVALID_ARGUMENT, "say whose token: an operator's name or id")
        token = self._new_token()

        def work(tx: Transaction) -> Operator | Refusal:
            everyone = self._store.all(tx.conn, lock=True)
            operator = next((each for each in everyone if name in (each.name, each.operator_id)), None)
            own = operator is not None and operator.operator_id == caller.operator_id
            try:
                if not own:
                    rules.authorise(caller.role, Role.OWNER, "another operator's token")
                if operator is None:
                    raise _no_operator(name)
                if not operator.intact or operator.revoked_at_ms:
                    raise Refusal(Reason.CONFLICT, "this operator was revoked: create another one, with a new name")
                if operator.is_owner and not own and not may_rotate_owners:
                    raise Refusal(Reason.PERMISSION_DENIED, "only a platform admin ends an owner's token: ask one")
            except Refusal as refusal:
                return refusal
            self._store.give_token(tx.conn, operator, _hash(token.reveal()))
            detail = {"own": own}
            self._audit.append(
                tx, AuditKind.OPERATOR_TOKEN_ROTATED, actor=caller.name, subject=operator.name, detail=detail
            )
            tx.after_commit(self._cache.clear)
            return operator

        rotated = await self._database.write(work)
        if isinstance(rotated, Refusal):
            raise rotated
        return rotated, token

    async def run(self) -> None:
        """Write the record of calls every few seconds."""
        while True:
            await self._clock.sleep(_FLUSH_S)
            try:
                await self.flush()
            except Refusal as refusal:
                log.warning("call_record_waits", reason=str(refusal.reason))

    async def flush(self) -> None:
        """Audit what was counted since the last time: a row of calls, and one of further refusals, per operator."""
        calls, self._calls = self._calls, Counter()
        refused, self._refused = self._refused, Counter()
        self._told_refusals.clear()

        def work(tx: Transaction) -> None:
            for kind, counted in ((AuditKind.OPERATOR_CALLED, calls), (AuditKind.OPERATOR_REFUSED, refused)):
                for operator, methods in _by_operator(counted).items():
                    self._audit.append(tx, kind, actor=operator, subject="admin", detail={"calls": {**methods}})

        if not calls and not refused:
            return
        try:
            await self._database.write(work)
        except Refusal:
            self._calls.update(calls)
            self._refused.update(refused)
            raise

    async def _authenticate(self, token: str) -> Operator:
        token_sha256 = _hash(token)
        operator = self._cached(token_sha256)
        if operator is None:
            if not self._genuine(token):
                raise _unknown()
            operator = await self._database.read(lambda conn: self._store.by_token(conn, token_sha256))
            if operator is None:
                raise _unknown()
            if not operator.intact:
                await self._tell_tampered(operator)
                raise _unknown()
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[token_sha256] = (self._clock.monotonic() + _CACHE_S, operator)
        if operator.revoked_at_ms:
            raise Refusal(Reason.UNAUTHENTICATED, "this operator token was revoked: ask an owner for a new one")
        return operator

    def _new_token(self) -> Secret[str]:
        return Secret(self._token_text(token_bytes(_TOKEN_BYTES)))

    def _token_text(self, secret: bytes) -> str:
        mac = hmac.digest(self._token_key, secret, "sha256")[:_TOKEN_MAC_BYTES]
        return TOKEN_PREFIX + base64.urlsafe_b64encode(secret + mac).decode().rstrip("=")

    def _genuine(self, token: str) -> bool:
        """Whether this server made the token: a flood of invented ones is refused without a query."""
        body = token.removeprefix(TOKEN_PREFIX)
        if body == token or len(body) != _TOKEN_CHARS or not body.isascii():
            return False
        try:
            secret = base64.urlsafe_b64decode(body)[:_TOKEN_BYTES]
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(token, self._token_text(secret))

    def _cached(self, token_sha256: bytes) -> Operator | None:
        until, operator = self._cache.get(token_sha256, (0.0, None))
        return operator if until > self._clock.monotonic() else None

    async def _tell_tampered(self, operator: Operator) -> None:
        if operator.operator_id in self._told:
            return
        self._told.add(operator.operator_id)
        log.error("operator_row_tampered", operator=operator.name)
        await self._audit_one(AuditKind.OPERATOR_QUARANTINED, operator.name, "row MAC does not fit")

    async def _tell_refused(self, operator: str, method: str) -> None:
        """Audit the first of its kind at once, and count those that follow, or cannot be written, for the flush."""
        if (operator, method) not in self._told_refusals:
            self._told_refusals.add((operator, method))
            try:
                await self._audit_one(AuditKind.OPERATOR_REFUSED, operator, method)
            except Refusal:
                log.warning("operator_refusal_waits", operator=operator, method=method)
            else:
                return
        self._refused[operator, method] += 1

    async def _audit_one(self, kind: AuditKind, operator: str, what: str) -> None:
        def work(tx: Transaction) -> None:
            self._audit.append(tx, kind, actor=operator, subject=what, detail={})

        await self._database.write(work)


def _by_operator(counted: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (operator, method), count in counted.items():
        found.setdefault(operator, {})[method] = count
    return found


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _no_operator(name: str) -> Refusal:
    return Refusal(Reason.NOT_FOUND, f"no operator is called {name[:80]!r}: see `fleetctl operators list`")


def _unknown() -> Refusal:
    return Refusal(
        Reason.UNAUTHENTICATED, "this operator token is not known here: run `fleetctl login` with a good one"
    )
