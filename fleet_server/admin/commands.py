"""Admin calls about commands."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fleet.metrics import Counter, Family
from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.commands.service import CommandService


class CommandsApi:
    """Commands as operators see them.

    Args:
        refusals: counts refusals by reason and place. A call that is refused whole is counted at the boundary; this
            counts the nodes that one call was refused for.
    """

    def __init__(self, commands: CommandService, refusals: Family[Counter]) -> None:
        self._commands = commands
        self._refusals = refusals

    async def issue(self, caller: Caller, request: admin_pb2.IssueCommandsRequest) -> admin_pb2.IssueCommandsResponse:
        """Issue every spec to every target."""
        answer = await self._commands.issue(caller.name, request)
        for refused in answer.refused:
            self._refusals.labels(refused.reason, "issue").inc()
        return answer

    async def list_commands(self, _: Caller, request: admin_pb2.ListCommandsRequest) -> admin_pb2.ListCommandsResponse:
        """A page of commands."""
        return await self._commands.list_page(request)

    async def get(self, _: Caller, request: admin_pb2.GetCommandRequest) -> admin_pb2.GetCommandResponse:
        """One command."""
        return admin_pb2.GetCommandResponse(command=await self._commands.get(request.command_id))

    def watch(
        self, _: Caller, request: admin_pb2.WatchCommandsRequest
    ) -> AsyncIterator[admin_pb2.WatchCommandsResponse]:
        """Commands as they change."""
        return self._commands.watch(request)

    async def cancel(
        self, caller: Caller, request: admin_pb2.CancelCommandsRequest
    ) -> admin_pb2.CancelCommandsResponse:
        """Cancel, or ask for it."""
        views = await self._commands.cancel(caller.name, list(request.command_ids), request.issue_id)
        return admin_pb2.CancelCommandsResponse(commands=views)
