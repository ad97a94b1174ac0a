"""Decisions about telemetry: what a frame may hold, what is a replay, how history is thinned. Pure; time is an
argument.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fleet.errors import Reason, Refusal
from fleet.v1 import telemetry_pb2

MAX_FRAME_BYTES = 64 * 1024
MAX_SERIES_PER_STREAM = 65_536
MAX_SERIES_PER_NODE = 10_000
MAX_NAME_CHARS = 200
MAX_LABELS = 16
MAX_LABEL_KEY_CHARS = 64
MAX_LABEL_VALUE_CHARS = 256
MAX_UNIT_CHARS = 32
MAX_GLOB_CHARS = 200

DEFAULT_SAMPLES = 1000
MAX_SAMPLES = 10_000
MAX_SAMPLES_IN_ALL = 200_000
DEFAULT_HISTORY_MS = 3600 * 1000

_MAX_TIME_MS = 2**53
_MAX_BATCH_SEQ = 2**63 - 1
_METRIC_CHARS = re.compile(r"[^a-zA-Z0-9_]")


class Series(NamedTuple):
    """What makes a series the same one on every stream of a node. Labels are sorted pairs."""

    name: str
    labels: tuple[tuple[str, str], ...]
    kind: int
    unit: str


def read_definition(definition: telemetry_pb2.SeriesDefinition) -> Series:
    """A new entry of a stream's dictionary.

    Raises:
        Refusal: MALFORMED when it breaks docs/protocol.md, "Telemetry".
    """
    if not 1 <= len(definition.name) <= MAX_NAME_CHARS or len(definition.unit) > MAX_UNIT_CHARS:
        raise malformed(f"a series name has 1 to {MAX_NAME_CHARS} characters, a unit at most {MAX_UNIT_CHARS}")
    if len(definition.labels) > MAX_LABELS:
        raise malformed(f"a series has at most {MAX_LABELS} labels")
    labels = tuple(sorted(definition.labels.items()))
    for key, value in labels:
        if not 1 <= len(key) <= MAX_LABEL_KEY_CHARS or len(value) > MAX_LABEL_VALUE_CHARS:
            raise malformed(
                f"a label key has 1 to {MAX_LABEL_KEY_CHARS} characters, a value at most {MAX_LABEL_VALUE_CHARS}"
            )
    texts = (definition.name, definition.unit, *(text for pair in labels for text in pair))
    if any("\x00" in text for text in texts):
        raise malformed("a series holds a NUL character, which no database text can")
    return Series(definition.name, labels, int(definition.kind), definition.unit)


def check_columns(batch: telemetry_pb2.TelemetryBatch, known: int) -> int:
    """Check a parsed batch against a dictionary of `known` series; the number of its samples.

    Raises:
        Refusal: MALFORMED: columns of unequal length, an unknown series number, or a number out of range.
    """
    series = batch.series
    count = len(series)
    if count != len(batch.values) or count != len(batch.time_offset_ms):
        raise malformed("the columns of a batch have different lengths")
    if count and max(series) >= known:
        raise malformed(f"a batch names series {max(series)}, but the stream defined only {known}")
    if not 1 <= batch.batch_seq <= _MAX_BATCH_SEQ or batch.dropped_through > _MAX_BATCH_SEQ:
        raise malformed("a batch_seq is 1 to 2^63 - 1")
    if not 0 <= batch.base_time_ms <= _MAX_TIME_MS:
        raise malformed("base_time_ms is no time in Unix milliseconds")
    return count


def is_replay(batch_seq: int, newest_ms: int, last_batch_seq: int, stored_newest_ms: int) -> bool:
    """Whether a batch was stored before.

    A node whose spool was lost counts from 1 again: its batches are older by number, but newer than anything stored.
    """
    return batch_seq <= last_batch_seq and newest_ms <= stored_newest_ms


def glob_matcher(glob: str) -> Callable[[str], bool]:
    """Whether a series name fits a glob; an empty one fits all.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if len(glob) > MAX_GLOB_CHARS:
        raise Refusal(Reason.INVALID_ARGUMENT, f"a glob over series names has at most {MAX_GLOB_CHARS} characters")
    if not glob:
        return lambda name: True
    pattern = re.compile(fnmatch.translate(glob))
    return lambda name: pattern.match(name) is not None


def is_measurement(value: float) -> bool:
    """NaN and infinities tell of no measurement: stored as they came, shown nowhere."""
    return math.isfinite(value)


class Window(NamedTuple):
    """A span of time to show, and how finely. Unix milliseconds, both ends inside."""

    from_ms: int
    to_ms: int
    samples: int

    def slot(self, at_ms: int) -> int:
        """Which of `samples` even slots a time falls into."""
        return (at_ms - self.from_ms) * self.samples // (self.to_ms - self.from_ms + 1)


def window(from_ms: int, to_ms: int, max_samples: int, now_ms: int) -> Window:
    """The window that a request means: until now, and for the last hour, unless it says otherwise.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    end = to_ms or now_ms
    start = from_ms or end - DEFAULT_HISTORY_MS
    if not 0 <= start <= end <= _MAX_TIME_MS:
        raise Refusal(Reason.INVALID_ARGUMENT, "the window of time is empty: from_ms must lie before to_ms")
    return Window(start, end, min(max_samples or DEFAULT_SAMPLES, MAX_SAMPLES))


def thin(samples: Iterable[tuple[int, float]], view: Window) -> list[tuple[int, float]]:
    """At most `view.samples` of the samples, in time order: all of them, or the newest of each even slot of time."""
    inside = sorted((at_ms, value) for at_ms, value in samples if view.from_ms <= at_ms <= view.to_ms)
    if len(inside) <= view.samples:
        return inside
    return list({view.slot(at_ms): (at_ms, value) for at_ms, value in inside}.values())


def spread(items: Sequence[int], most: int) -> Sequence[int]:
    """At most `most` of the items, evenly, first and last among them."""
    if len(items) <= most:
        return items
    step = (len(items) - 1) / (most - 1)
    return [items[round(index * step)] for index in range(most)]


def metric_name(series: Series) -> str:
    """Name in the Prometheus exposition: `fleet_node_` and the series' own, with what is not allowed there replaced."""
    return "fleet_node_" + _METRIC_CHARS.sub("_", series.name)


def label_name(key: str) -> str:
    """Label name in the Prometheus exposition; what the gateway itself sets cannot be claimed by a node."""
    name = _METRIC_CHARS.sub("_", key)
    return f"label_{name}" if name in ("node", "le", "quantile") or not name[0].isalpha() else name


def malformed(detail: str) -> Refusal:
    """A frame that breaks the protocol."""
    return Refusal(Reason.MALFORMED, f"a telemetry frame was refused: {detail}")
