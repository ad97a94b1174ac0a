"""Telemetry as OTLP metrics (opentelemetry-proto 1.10, `metrics.proto`).

A node is a resource: `service.name` is "fleet-node", `service.instance.id` the node's name, which Prometheus turns into
`job` and `instance`. Its series of one name, kind and unit are one metric, their labels the points' attributes. A
counter is a cumulative, monotonic sum whose start is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, ResourceMetrics

from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import rules
from fleet_server.telemetry.rules import Series

__all__ = ["ExportMetricsServiceRequest", "Origin", "RequestBuilder"]

SERVICE_NAME = "fleet-node"
EXPORTER_NAME = "fleet-export"
SCOPE = "fleet.telemetry"
MAX_POINTS = 5_000
"""In one request: some 500 KB before compression."""
_MAX_CACHED_SERIES = 50_000
_NS_PER_MS = 1_000_000

MetricKey = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Origin:
    """The node that a chunk is of, as people know it."""

    node_id: str
    name: str
    site: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def attribute(key: str, value: str) -> KeyValue:
    """An attribute with a text."""
    return KeyValue(key=key, value=AnyValue(string_value=value))


def count(request: ExportMetricsServiceRequest) -> int:
    """Samples in a request."""
    return sum(
        len(metric.gauge.data_points) + len(metric.sum.data_points)
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def halves(request: ExportMetricsServiceRequest) -> Sequence[ExportMetricsServiceRequest]:
    """Two requests with half of the nodes each; none of a single node's."""
    nodes = request.resource_metrics
    if len(nodes) < 2:
        return ()
    middle = len(nodes) // 2
    return [ExportMetricsServiceRequest(resource_metrics=part) for part in (nodes[:middle], nodes[middle:])]


def sign_of_life(cluster: str, at_ms: int) -> ExportMetricsServiceRequest:
    """One sample, which says that telemetry goes out; Unix milliseconds."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend((attribute("service.name", EXPORTER_NAME), attribute("fleet.cluster", cluster)))
    scope = resource.scope_metrics.add()
    scope.scope.name = SCOPE
    point = scope.metrics.add(name="fleet.export.active").gauge.data_points.add()
    point.time_unix_nano, point.as_double = at_ms * _NS_PER_MS, 1.0
    return request


class _Resource:
    """What a request holds of one node."""

    def __init__(self, into: ResourceMetrics, origin: Origin, cluster: str) -> None:
        named = {
            "service.name": SERVICE_NAME,
            "service.instance.id": origin.name,
            "fleet.cluster": cluster,
            "fleet.node.id": origin.node_id,
            "fleet.site": origin.site,
            **{f"fleet.label.{key}": value for key, value in sorted(origin.labels.items())},
        }
        into.resource.attributes.extend(attribute(key, value) for key, value in named.items() if value)
        self._scope = into.scope_metrics.add()
        self._scope.scope.name = SCOPE
        self._metrics: dict[MetricKey, Any] = {}

    def points(self, series: Series) -> Any:
        """Where points of a series go."""
        key = (series.name, series.kind, series.unit)
        points = self._metrics.get(key)
        if points is None:
            metric = self._scope.metrics.add(name=series.name, unit=series.unit)
            if series.kind == telemetry_pb2.SERIES_KIND_COUNTER:
                metric.sum.is_monotonic = True
                metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
                points = metric.sum.data_points
            else:
                points = metric.gauge.data_points
            self._metrics[key] = points
        return points


class RequestBuilder:
    """Gathers samples into requests of a bounded size.

    Args:
        cluster: name of the cluster.
        max_points: in one request.
    """

    def __init__(self, cluster: str, max_points: int = MAX_POINTS) -> None:
        self._cluster = cluster
        self._max_points = max_points
        self._attributes: dict[Series, Sequence[KeyValue]] = {}
        self._begin()

    def _begin(self) -> None:
        self._request = ExportMetricsServiceRequest()
        self._resources: dict[str, _Resource] = {}
        self._count = 0

    def add(
        self,
        origin: Origin,
        series: Mapping[int, Series],
        numbers: Sequence[int],
        batches: Iterable[telemetry_pb2.TelemetryBatch],
        end_ms: int,
    ) -> Iterator[ExportMetricsServiceRequest]:
        """Take the samples of one chunk; each request that became full meanwhile.

        Args:
            series: the node's, by number.
            numbers: number of each series of the chunk's dictionary.
            end_ms: no sample is later, whatever the node's clock said; Unix milliseconds.
        """
        for batch in batches:
            base_ms = batch.base_time_ms
            for stream_number, offset_ms, value in zip(batch.series, batch.time_offset_ms, batch.values, strict=False):
                number = numbers[stream_number] if stream_number < len(numbers) else -1
                known = series.get(number)
                if known is None or not rules.is_measurement(value):
                    continue
                self._add(origin, known, min(base_ms + offset_ms, end_ms), value)
                if self._count >= self._max_points:
                    yield self._hand_out()

    def rest(self) -> Iterator[ExportMetricsServiceRequest]:
        """The request that is not full, if there is one."""
        if self._count:
            yield self._hand_out()

    def _add(self, origin: Origin, series: Series, at_ms: int, value: float) -> None:
        resource = self._resources.get(origin.node_id)
        if resource is None:
            into = self._request.resource_metrics.add()
            resource = self._resources[origin.node_id] = _Resource(into, origin, self._cluster)
        point = resource.points(series).add(time_unix_nano=at_ms * _NS_PER_MS, as_double=value)
        attributes = self._attributes.get(series)
        if attributes is None:
            if len(self._attributes) >= _MAX_CACHED_SERIES:
                self._attributes.clear()  # full of what came and went: what is still in use comes back
            attributes = self._attributes[series] = [attribute(key, text) for key, text in series.labels]
        if attributes:
            point.attributes.extend(attributes)
        self._count += 1

    def _hand_out(self) -> ExportMetricsServiceRequest:
        request = self._request
        self._begin()
        return request
