"""An operator who calls the real admin service over TLS, and reads refusals as `fleet.errors.Refusal`."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from fleet import status
from fleet.v1 import admin_pb2, admin_pb2_grpc, command_pb2
from tests.integration.waiting import eventually

CALL_TIMEOUT_S = 20.0
FINAL = command_pb2.COMMAND_STATE_SUCCEEDED


class Operator:
    """One operator's token on one channel; `close` it.

    Args:
        address: host:port of the admin listener.
        ca_pem: the installation's CA.
        token: the operator's.
    """

    def __init__(self, address: str, ca_pem: bytes, token: str) -> None:
        self._address, self._ca_pem = address, ca_pem
        self._channel = grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(ca_pem),
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)],
        )
        self._stub = admin_pb2_grpc.AdminStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    def colleague(self, token: str) -> "Operator":
        """Another operator at the same server."""
        return Operator(self._address, self._ca_pem, token)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(None)

    async def ask(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call a unary method.

        Raises:
            Refusal: what the server said.
        """
        try:
            return await getattr(self._stub, method)(
                request, metadata=self._metadata, timeout=timeout_s, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from error

    async def follow(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> AsyncIterator[Any]:
        """Call a streaming method; the answers as they come.

        Raises:
            Refusal: what the server said.
        """
        call = getattr(self._stub, method)(request, metadata=self._metadata, timeout=timeout_s)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from error
        finally:
            call.cancel()

    # -- commands ---------------------------------------------------------------------------------------------------
    async def issue(
        self,
        *patterns: str,
        action: str = "simulated.noop",
        count: int = 1,
        arguments: dict[str, Any] | None = None,
        **fields: Any,
    ) -> admin_pb2.IssueCommandsResponse:
        """Issue `count` times the same command."""
        spec = admin_pb2.CommandSpec(action=action, arguments=json.dumps(arguments or {}).encode())
        request = admin_pb2.IssueCommandsRequest(
            selector=admin_pb2.Selector(patterns=patterns or ["*"]), commands=[spec] * count, **fields
        )
        return await self.ask("IssueCommands", request)

    async def outcomes(self, issue_id: str, timeout_s: float = CALL_TIMEOUT_S) -> list[admin_pb2.CommandView]:
        """Every command of an issue once all are final, by node and seq."""
        request = admin_pb2.WatchCommandsRequest(issue_id=issue_id, until_final=True)
        found: dict[bytes, admin_pb2.CommandView] = {}
        async for answer in self.follow("WatchCommands", request, timeout_s):
            found |= {view.command_id: view for view in answer.commands}
        return sorted(found.values(), key=lambda view: (view.node_name, view.monotonic_seq))

    async def run(self, *patterns: str, **fields: Any) -> list[admin_pb2.CommandView]:
        """Issue, and wait for every outcome."""
        return await self.outcomes((await self.issue(*patterns, **fields)).issue_id)

    async def command(self, command_id: bytes) -> admin_pb2.CommandView:
        """One command as it stands."""
        return (await self.ask("GetCommand", admin_pb2.GetCommandRequest(command_id=command_id))).command

    async def wait_command(
        self, command_id: bytes, where: Callable[[admin_pb2.CommandView], bool]
    ) -> admin_pb2.CommandView:
        """One command once it is as `where` wants it."""

        async def look() -> admin_pb2.CommandView | None:
            view = await self.command(command_id)
            return view if where(view) else None

        return await eventually(look, f"command {command_id.hex()}")

    async def cancel(self, *command_ids: bytes) -> list[admin_pb2.CommandView]:
        """Ask for cancels; how the commands stand."""
        request = admin_pb2.CancelCommandsRequest(command_ids=command_ids)
        return list((await self.ask("CancelCommands", request)).commands)

    # -- nodes and trail --------------------------------------------------------------------------------------------
    async def node(self, name: str) -> admin_pb2.NodeView:
        """One node as it stands."""
        return (await self.ask("GetNode", admin_pb2.GetNodeRequest(node=name))).node

    async def wait_node(self, name: str, where: Callable[[admin_pb2.NodeView], bool]) -> admin_pb2.NodeView:
        """One node once it is as `where` wants it."""

        async def look() -> admin_pb2.NodeView | None:
            view = await self.node(name)
            return view if where(view) else None

        return await eventually(look, f"node {name}")

    async def set_state(self, name: str, state: str, reason: str = "") -> None:
        """Suspend, resume or revoke."""
        selector = admin_pb2.Selector(patterns=[name])
        await self.ask("SetNodeState", admin_pb2.SetNodeStateRequest(selector=selector, state=state, reason=reason))

    async def adopt(self, name: str) -> None:
        """Say that the machine which comes next is the node."""
        selector = admin_pb2.Selector(patterns=[name])
        await self.ask("AdoptNodes", admin_pb2.AdoptNodesRequest(selector=selector, reason="it is this one"))

    async def audit(self, *kinds: str) -> list[admin_pb2.AuditEntry]:
        """Audit rows of these kinds (all without one), in order."""
        found: list[admin_pb2.AuditEntry] = []
        async for page in self.follow("ExportAudit", admin_pb2.ExportAuditRequest()):
            found += [entry for entry in page.entries if not kinds or entry.kind in kinds]
        return found

    async def wait_audit(self, kind: str, where: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """Detail of the first row of that kind that `where` takes; some rows are written with a delay."""

        async def look() -> Sequence[dict[str, Any]]:
            details = [json.loads(entry.detail) for entry in await self.audit(kind)]
            return [detail for detail in details if where(detail)]

        return (await eventually(look, f"audit row {kind}"))[0]
