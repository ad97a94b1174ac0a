"""Newest values of the nodes that stream, for Prometheus. Few names, bounded series: a fleet must not drown who scrapes
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fleet.metrics import Counter
from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import rules
from fleet_server.telemetry.rules import Series
from fleet_server.telemetry.series import Latest, NodeSeries

MAX_SERIES = 20_000
MAX_NAMES = 1000


def families(nodes: Sequence[tuple[str, NodeSeries]], dropped: Counter) -> Iterator[Metric]:
    """One family for each series name and kind; node by node until the cap, so that a node is shown whole or hardly at
    all.

    Iterated on the listener's worker thread, the only writer of `dropped`.
    """
    found: dict[str, _Family] = {}
    kept = 0
    for _, node in nodes:
        for latest in node.latest():
            name = rules.metric_name(latest.series)
            family = found.get(name)
            if family is None and len(found) < MAX_NAMES:
                family = found[name] = _Family(name, latest.series)
            if kept >= MAX_SERIES or family is None or not family.add(node.name, latest):
                dropped.inc()
            else:
                kept += 1
    for family in found.values():
        yield family.build()


class _Family:
    def __init__(self, name: str, first: Series) -> None:
        self._name = name
        self._first = first
        self._samples: dict[tuple[tuple[str, str], ...], Latest] = {}

    def add(self, node_name: str, latest: Latest) -> bool:
        """False for a series that would be the same one after its names are made fit, or is of another kind."""
        labels = {rules.label_name(key): value for key, value in latest.series.labels}
        key = (("node", node_name), *sorted(labels.items()))
        if latest.series.kind != self._first.kind or key in self._samples:
            return False
        self._samples[key] = latest
        return True

    def build(self) -> Metric:
        help_text = f"{self._first.name} as nodes report it"
        if self._first.unit:
            help_text += f", in {self._first.unit}"
        is_counter = self._first.kind == telemetry_pb2.SERIES_KIND_COUNTER
        kind = CounterMetricFamily if is_counter else GaugeMetricFamily
        family = kind(self._name.removesuffix("_total") if is_counter else self._name, help_text)
        name = family.name + "_total" if is_counter else family.name
        for labels, latest in self._samples.items():
            family.add_sample(name, dict(labels), latest.value, timestamp=latest.at_ms / 1000)
        return family
