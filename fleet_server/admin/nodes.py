"""Admin calls about nodes: list, watch, suspend, rotate, label, drain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fleet.clock import Clock
from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.admin.paging import page_size
from fleet_server.admin.views import checklist_view, node_view
from fleet_server.audit.node_audit import NodeAudit
from fleet_server.database.wakeup import Bell, Wakeup
from fleet_server.nodes.record import DrainState, NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.sessions.rotating import RotationService
from fleet_server.sessions.rotations import Wanted

if TYPE_CHECKING:
    from collections.abc import Iterator

_WATCH_PAGE = 1000
_WATCH_PAUSE_S = 0.25  # changes of a large fleet are told together
_DRAIN_PAUSE_S = 0.05
_POLL_S = 1.5  # what happens at other replicas is seen within two seconds, hinted or not


class NodesApi:
    """Nodes as operators see them."""

    def __init__(
        self,
        nodes: NodeService,
        rotations: RotationService,
        audit: NodeAudit,
        wakeup: Wakeup,
        clock: Clock,
        any_machine_until_ms: Callable[[str], Awaitable[int]],
    ) -> None:
        self._nodes = nodes
        self._any_machine_until_ms = any_machine_until_ms
        self._rotations = rotations
        self._audit = audit
        self._wakeup = wakeup
        self._clock = clock

    async def list_nodes(self, _: Caller, request: admin_pb2.ListNodesRequest) -> admin_pb2.ListNodesResponse:
        """A page of nodes by name; the page token is the last name."""
        limit = page_size(request.page)
        found = await self._nodes.select(request.selector.patterns, after=request.page.token, limit=limit)
        return admin_pb2.ListNodesResponse(
            nodes=map(node_view, found), next_page_token=found[-1].name if len(found) == limit else ""
        )

    async def get(self, _: Caller, request: admin_pb2.GetNodeRequest) -> admin_pb2.GetNodeResponse:
        """One node with what it offers."""
        node = await self._nodes.get(request.node)
        number, standing = await self._audit.standing(node.node_id)
        return admin_pb2.GetNodeResponse(
            node=node_view(node),
            drivers=await self._nodes.drivers(node.node_id),
            audit=admin_pb2.NodeAuditView(
                rows=number,
                last_at_ms=standing.last_at_ms,
                finding=standing.finding,
                finding_at_ms=standing.finding_at_ms,
                chain=standing.chain,
            ),
            any_machine_until_ms=await self._any_machine_until_ms(node.node_id),
        )

    async def watch(
        self, _: Caller, request: admin_pb2.WatchNodesRequest
    ) -> AsyncIterator[admin_pb2.WatchNodesResponse]:
        """All nodes first, then those whose view changed."""
        known: dict[str, bytes] = {}
        with self._changes() as changed:
            while True:
                news: list[admin_pb2.NodeView] = []
                async for nodes in self._pages(request.selector.patterns):  # the views of a fleet at once take a while
                    news += [view for view in map(node_view, nodes) if _is_news(known, view)]
                if news or not known:
                    yield admin_pb2.WatchNodesResponse(nodes=news)
                await self._clock.sleep(_WATCH_PAUSE_S)
                await changed.wait(_POLL_S)

    async def set_state(self, caller: Caller, request: admin_pb2.SetNodeStateRequest) -> admin_pb2.SetNodeStateResponse:
        """Suspend, resume or revoke."""
        changed = await self._nodes.set_state(caller.name, request.selector.patterns, request.state, request.reason)
        return admin_pb2.SetNodeStateResponse(nodes=map(node_view, changed))

    async def adopt(self, caller: Caller, request: admin_pb2.AdoptNodesRequest) -> admin_pb2.AdoptNodesResponse:
        """Let quarantined nodes back in."""
        changed = await self._nodes.adopt(caller.name, request.selector.patterns, request.reason)
        return admin_pb2.AdoptNodesResponse(nodes=map(node_view, changed))

    async def checklist(self, _: Caller, request: admin_pb2.GetChecklistRequest) -> admin_pb2.GetChecklistResponse:
        """What is left to do for a revoked node."""
        node, items = await self._nodes.checklist(request.node)
        return admin_pb2.GetChecklistResponse(node=node_view(node), items=map(checklist_view, items))

    async def tick(self, caller: Caller, request: admin_pb2.TickChecklistRequest) -> admin_pb2.TickChecklistResponse:
        """An item of it is done."""
        node, items = await self._nodes.tick(caller.name, request.node, request.item, request.note)
        return admin_pb2.TickChecklistResponse(node=node_view(node), items=map(checklist_view, items))

    async def rotate(self, caller: Caller, request: admin_pb2.RotateNodesRequest) -> admin_pb2.RotateNodesResponse:
        """Order new credentials."""
        wanted = Wanted(0)
        for asked, flag in (
            (request.api_key, Wanted.API_KEY),
            (request.identity, Wanted.IDENTITY),
            (request.sealing, Wanted.SEALING),
        ):
            wanted |= flag if asked else Wanted(0)
        done = await self._rotations.rotate(caller.name, request.selector.patterns, wanted, request.overlap_s)
        refused = [
            admin_pb2.RefusedTarget(
                node_id=node.node_id, node_name=node.name, reason=str(refusal.reason), detail=refusal.detail
            )
            for node, refusal in done.refused
        ]
        return admin_pb2.RotateNodesResponse(nodes=map(node_view, done.nodes), refused=refused)

    async def label(self, caller: Caller, request: admin_pb2.LabelNodesRequest) -> admin_pb2.LabelNodesResponse:
        """Set and remove operator labels."""
        changed = await self._nodes.label(caller.name, request.selector.patterns, dict(request.set), request.remove)
        return admin_pb2.LabelNodesResponse(nodes=map(node_view, changed))

    async def drain(
        self, caller: Caller, request: admin_pb2.DrainNodesRequest
    ) -> AsyncIterator[admin_pb2.DrainNodesResponse]:
        """Ask nodes to drain and tell progress until all are."""
        with self._changes() as changed:
            asked = await self._nodes.request_drain(
                caller.name, request.selector.patterns, request.deadline_s, request.reason
            )
            ids = [node.node_id for node in asked]
            known: dict[str, bytes] = {}
            while True:
                left = 0
                news: list[admin_pb2.NodeView] = []
                for start in range(0, len(ids), _WATCH_PAGE):  # by id: no selector may name as many
                    nodes = await self._nodes.again(ids[start : start + _WATCH_PAGE])
                    left += sum(node.drain_state is DrainState.DRAINING for node in nodes)
                    news += [view for view in map(node_view, nodes) if _is_news(known, view)]
                if news:
                    yield admin_pb2.DrainNodesResponse(nodes=news, nodes_left=left, done=left == 0)
                if left == 0:
                    return
                await self._clock.sleep(_DRAIN_PAUSE_S)
                await changed.wait(_POLL_S)

    async def resume(self, caller: Caller, request: admin_pb2.ResumeNodesRequest) -> admin_pb2.ResumeNodesResponse:
        """End a drain."""
        resumed = await self._nodes.resume(caller.name, request.selector.patterns)
        return admin_pb2.ResumeNodesResponse(nodes=map(node_view, resumed))

    async def _pages(self, patterns: Sequence[str]) -> AsyncIterator[list[NodeRecord]]:
        after = ""
        while True:
            page = await self._nodes.select(patterns, after=after, limit=_WATCH_PAGE)
            yield page
            if len(page) < _WATCH_PAGE:
                return
            after = page[-1].name

    @contextmanager
    def _changes(self) -> Iterator[Bell]:
        changed = Bell(self._clock)
        unsubscribe = self._wakeup.subscribe("nodes", changed.ring_nowait)
        try:
            yield changed
        finally:
            unsubscribe()


def _is_news(known: dict[str, bytes], view: admin_pb2.NodeView) -> bool:
    now = view.SerializeToString(deterministic=True)
    if known.get(view.node_id) == now:
        return False
    known[view.node_id] = now
    return True
