"""Admin calls about telemetry."""

from __future__ import annotations

from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.telemetry.service import TelemetryService


class TelemetryApi:
    """Telemetry as operators see it."""

    def __init__(self, telemetry: TelemetryService) -> None:
        self._telemetry = telemetry

    async def latest(self, _: Caller, request: admin_pb2.LatestTelemetryRequest) -> admin_pb2.LatestTelemetryResponse:
        """Newest value per series."""
        return await self._telemetry.latest(request)

    async def history(
        self, _: Caller, request: admin_pb2.TelemetryHistoryRequest
    ) -> admin_pb2.TelemetryHistoryResponse:
        """Stored samples."""
        return await self._telemetry.history(request)
