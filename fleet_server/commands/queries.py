"""Show commands: one, pages of them, and a stream of those that change."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Iterator, Sequence

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.commands import history_store, rules
from fleet_server.commands.authority import Authorities, Authority
from fleet_server.commands.history_store import FullRow
from fleet_server.commands.names import NodeNames
from fleet_server.commands.ports import Rooms
from fleet_server.commands.run_store import impossible
from fleet_server.commands.store import Connection, Key

log = get_logger(__name__)

DEFAULT_PAGE = 100
MAX_PAGE = 1000
_MAX_TOKEN_CHARS = 512
_MAX_NAMED = 10


class Queries:
    """Reads; nothing here writes."""

    def __init__(self, rooms: Rooms, authorities: Authorities, names: NodeNames, retention_s: int) -> None:
        self._rooms = rooms
        self._authorities = authorities
        self._names = names
        self._retention_s = retention_s

    async def get(self, command_id: bytes) -> admin_pb2.CommandView:
        """See `CommandService.get`."""
        views = await self._rooms.database.read(lambda conn: self._one(conn, command_id))
        if not views:
            raise Refusal(
                Reason.NOT_FOUND,
                f"there is no command {command_id[:16].hex()}: {self._instead(command_id)}",
            )
        return views[0]

    def _instead(self, command_id: bytes) -> str:
        """Where to look for a command that is not there."""
        if rules.may_be_forgotten(command_id, self._rooms.clock.now_ms(), self._retention_s * 1000):
            made = dt.datetime.fromtimestamp(rules.made_at_ms(command_id) / 1000, dt.UTC)
            return (
                f"by its id it was issued on {made:%Y-%m-%d}, and commands are forgotten {self._retention_s // 86_400}"
                " days after their issue has ended (command_retention_s): `fleetctl audit export` has who issued it"
            )
        return "see `fleetctl commands list`"

    async def list_page(self, request: admin_pb2.ListCommandsRequest) -> admin_pb2.ListCommandsResponse:
        """See `CommandService.list_page`."""
        size = min(request.page.size or DEFAULT_PAGE, MAX_PAGE)
        node_id = (await self._rooms.nodes.get(request.node)).node_id if request.node else ""
        after = _read_token(request.page.token)

        def query(conn: Connection) -> admin_pb2.ListCommandsResponse:
            if node_id:
                rows, token = _page_of_node(conn, node_id, request, after, size)
            else:
                if request.issue_id and not after:
                    name_impossible(conn, request.issue_id)
                rows, token = _page_by_issue(conn, request, after, size)
            return admin_pb2.ListCommandsResponse(
                commands=self.views(conn, rows, brief=False), next_page_token=_write_token(token)
            )

        return await self._rooms.database.read(query)

    async def by_keys(self, keys: Sequence[Key], *, brief: bool) -> list[admin_pb2.CommandView]:
        """Commands by (node_id, seq)."""
        return await self._rooms.database.read(
            lambda conn: self.views(conn, history_store.full_by_keys(conn, keys, brief=brief), brief=brief)
        )

    def from_memory(self, rows: Sequence[FullRow | None], *, brief: bool) -> list[admin_pb2.CommandView] | None:
        """Views of rows that came with their change; None when anything of them has to be read."""
        views = []
        for row in rows:
            authority = None if row is None else self._authorities.peek(row.issue_id)
            name = None if row is None else self._names.known(row.node_id)
            if row is None or authority is None or name is None:
                return None
            view = _view(row, name, authority, brief=brief)
            view.unverified = not self._authorities.intact(authority, row)  # a report may have found it in the database
            views.append(view)
        return views

    def _one(self, conn: Connection, command_id: bytes) -> list[admin_pb2.CommandView]:
        row = history_store.full_by_id(conn, command_id)
        return [] if row is None else self.views(conn, [row], brief=False)

    def views(self, conn: Connection, rows: Sequence[FullRow], *, brief: bool) -> list[admin_pb2.CommandView]:
        """Rows as they are shown, each with whether its MAC fits. Any thread."""
        authorities = self._authorities.load(conn, [row.issue_id for row in rows])
        names = self._names.of(conn, {row.node_id for row in rows})
        views = []
        for row in rows:
            authority = authorities.get(row.issue_id)
            view = _view(row, names.get(row.node_id, ""), authority, brief=brief)
            view.unverified = not self._authorities.intact(authority, row)
            views.append(view)
        return views


def name_impossible(conn: Connection, issue_id: str) -> None:
    """Say which runs of an issue are passed over: its answers lack their commands."""
    nodes = impossible(conn, issue_id)
    if nodes:
        log.error("command_run_tampered", issue_id=issue_id, nodes=nodes[:_MAX_NAMED], count=len(nodes))


def _view(row: FullRow, node_name: str, authority: Authority | None, *, brief: bool) -> admin_pb2.CommandView:
    view = admin_pb2.CommandView(
        command_id=row.command_id,
        issue_id=row.issue_id,
        node_id=row.node_id,
        node_name=node_name,
        monotonic_seq=max(row.seq, 0),
        state=command_pb2.CommandState.ValueType(row.state),
        cancel_requested=bool(row.cancel_requested_by) and not rules.is_final(row.state),
        not_after_ms=row.not_after_ms,
        sent_at_ms=row.sent_at_ms,
        accepted_at_ms=row.accepted_at_ms,
        started_at_ms=row.started_at_ms,
        finished_at_ms=row.finished_at_ms,
        output=b"" if brief else row.output or b"",
        reason=row.reason,
        error=row.error,
        key_id=row.key_id or b"",
        output_truncated=bool(row.output_truncated),
    )
    if authority is not None and 0 <= row.spec_no < len(authority.specs):
        view.actor = authority.actor
        view.issued_at_ms = authority.issued_at_ms
        spec = authority.specs[row.spec_no]
        view.action = spec.action
        if not brief:
            view.arguments = spec.arguments
    return view


def _page_of_node(
    conn: Connection, node_id: str, request: admin_pb2.ListCommandsRequest, after: list[int | str], size: int
) -> tuple[list[FullRow], list[int | str]]:
    before_seq = _int(after, 0) if after else None
    rows = history_store.page_of_node(
        conn, node_id, issue_id=request.issue_id, before_seq=before_seq, limit=size, open_only=request.open_only
    )
    return rows, [rows[-1].seq] if len(rows) == size else []


def _page_by_issue(
    conn: Connection, request: admin_pb2.ListCommandsRequest, after: list[int | str], size: int
) -> tuple[list[FullRow], list[int | str]]:
    """Issues newest first, the commands of each by node and seq. The token names the last row of the page."""
    issue: tuple[int, str] | None = None
    key: Key = ("", 0)
    if after:
        issue, key = (_int(after, 0), _str(after, 1)), (_str(after, 2), _int(after, 3))
    rows: list[FullRow] = []
    for each in _issues(conn, request, issue):
        start = key if each == issue else ("", 0)
        rows += history_store.page_of_issue(
            conn, each[1], after=start, limit=size - len(rows), open_only=request.open_only
        )
        if len(rows) == size:
            return rows, [*each, rows[-1].node_id, rows[-1].seq]
    return rows, []


def _issues(
    conn: Connection, request: admin_pb2.ListCommandsRequest, first: tuple[int, str] | None
) -> Iterator[tuple[int, str]]:
    if request.issue_id:
        yield first or (0, request.issue_id)
        return
    if request.open_only:
        yield from (each for each in history_store.open_issues(conn) if first is None or each <= first)
        return
    if first is not None:
        yield first
    while (first := history_store.issue_before(conn, first)) is not None:
        yield first


def _write_token(parts: Sequence[int | str]) -> str:
    if not parts:
        return ""
    return base64.urlsafe_b64encode(json.dumps(list(parts), separators=(",", ":")).encode()).decode()


def _read_token(token: str) -> list[int | str]:
    if not token:
        return []
    try:
        if len(token) > _MAX_TOKEN_CHARS:
            raise ValueError
        parts = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, binascii.Error, RecursionError):
        raise _bad_token() from None
    if not isinstance(parts, list) or not all(isinstance(part, int | str) for part in parts):
        raise _bad_token()
    return parts


def _int(parts: Sequence[int | str], index: int) -> int:
    value = parts[index] if index < len(parts) else None
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise _bad_token()
    return value


def _str(parts: Sequence[int | str], index: int) -> str:
    value = parts[index] if index < len(parts) else None
    if not isinstance(value, str) or "\x00" in value:
        raise _bad_token()
    return value


def _bad_token() -> Refusal:
    return Refusal(Reason.INVALID_ARGUMENT, "the page token is none that this server gave out: start without one")
