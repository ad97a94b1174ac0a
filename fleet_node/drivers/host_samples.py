"""Telemetry of this machine: CPU, load, memory, swap, disks, network, uptime. Each call is one moment.

The number of series is bounded by the machine's hardware and by the limits below: a host with a thousand
virtual interfaces must not fill the server's storage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final, Literal

import psutil

from fleet_node.drivers.api import Sample
from fleet_node.drivers.host_disks import MAX_LABEL_CHARS, mounted_disks
from fleet_node.drivers.json_text import line_within

MAX_CORES: Final = 128
MAX_DEVICES: Final = 16
MAX_NICS: Final = 16

_Labels = tuple[tuple[str, str], ...]


class HostSampler:
    """Remembers the last CPU times: a percentage is a difference. One call of `sample` at a time."""

    def __init__(self) -> None:
        self._last_cpu = _cpu_times()
        self._boot_time_s = psutil.boot_time()

    def sample(self) -> Iterator[Sample]:
        """All series, now. The first call covers the time since construction."""
        yield from self._cpu()
        yield from _load()
        yield from _memory()
        yield from _disk_usage()
        yield from _disk_io()
        yield from _network_io()
        yield _gauge("host.uptime", "seconds", time.time() - self._boot_time_s)

    def _cpu(self) -> Iterator[Sample]:
        last, now = self._last_cpu, _cpu_times()
        self._last_cpu = now
        if len(last) != len(now):  # a core went on or off line: its history is no base for a difference
            last = now
        busy_s = [after[0] - before[0] for before, after in zip(last, now, strict=True)]
        total_s = [after[1] - before[1] for before, after in zip(last, now, strict=True)]
        yield _gauge("host.cpu.percent", "percent", _percent(sum(busy_s), sum(total_s)))
        for core, (busy, total) in enumerate(zip(busy_s, total_s, strict=True)):
            labels = (("core", str(core)),)
            yield _gauge("host.cpu.core.percent", "percent", _percent(busy, total), labels)


def _cpu_times() -> list[tuple[float, float]]:
    """Seconds busy and seconds in all, per core."""
    times = []
    for core in psutil.cpu_times(percpu=True)[:MAX_CORES]:
        # Linux counts the time of guests a second time, inside user and nice.
        guests_s = getattr(core, "guest", 0.0) + getattr(core, "guest_nice", 0.0)
        total_s = sum(core) - guests_s
        idle_s = core.idle + getattr(core, "iowait", 0.0)
        times.append((total_s - idle_s, total_s))
    return times


def _percent(part: float, whole: float) -> float:
    """0 to 100, also when the kernel's counters step back a little."""
    return min(100.0, max(0.0, part / whole * 100)) if whole > 0 else 0.0


def _load() -> Iterator[Sample]:
    for minutes, value in zip((1, 5, 15), psutil.getloadavg(), strict=True):
        yield _gauge("host.load", "1", value, (("minutes", str(minutes)),))


def _memory() -> Iterator[Sample]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    yield _gauge("host.memory.total", "bytes", memory.total)
    yield _gauge("host.memory.available", "bytes", memory.available)
    yield _gauge("host.memory.percent", "percent", memory.percent)
    yield _gauge("host.swap.total", "bytes", swap.total)
    yield _gauge("host.swap.used", "bytes", swap.used)


def _disk_usage() -> Iterator[Sample]:
    for disk in mounted_disks():
        labels = (("mount", disk.mount),)
        yield _gauge("host.disk.total", "bytes", disk.total_bytes, labels)
        yield _gauge("host.disk.free", "bytes", disk.free_bytes, labels)
        # Of what users can fill: root's reserve is neither used nor free to them.
        in_use = _percent(disk.used_bytes, disk.used_bytes + disk.free_bytes)
        yield _gauge("host.disk.percent", "percent", in_use, labels)


def _disk_io() -> Iterator[Sample]:
    whole_disks = ((name, io) for name, io in _io(psutil.disk_io_counters(perdisk=True)) if _is_disk(name))
    for _, (name, io) in zip(range(MAX_DEVICES), whole_disks, strict=False):
        labels = (("device", line_within(name, MAX_LABEL_CHARS)),)
        yield _counter("host.disk.read", "bytes", io.read_bytes, labels)
        yield _counter("host.disk.written", "bytes", io.write_bytes, labels)


def _is_disk(name: str) -> bool:
    return not name.startswith(("loop", "ram", "zram"))


def _network_io() -> Iterator[Sample]:
    interfaces = ((name, io) for name, io in _io(psutil.net_io_counters(pernic=True)) if name != "lo")
    for _, (name, io) in zip(range(MAX_NICS), interfaces, strict=False):
        labels = (("interface", line_within(name, MAX_LABEL_CHARS)),)
        yield _counter("host.network.received", "bytes", io.bytes_recv, labels)
        yield _counter("host.network.sent", "bytes", io.bytes_sent, labels)
        yield _counter("host.network.errors", "1", io.errin + io.errout, labels)


def _io(counters: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """Sorted by name, so that the same ones are kept each time; None on machines without any."""
    return sorted((counters or {}).items())


def _gauge(name: str, unit: str, value: float, labels: _Labels = ()) -> Sample:
    return _sample("gauge", name, unit, value, labels)


def _counter(name: str, unit: str, value: float, labels: _Labels = ()) -> Sample:
    return _sample("counter", name, unit, value, labels)


def _sample(kind: Literal["gauge", "counter"], name: str, unit: str, value: float, labels: _Labels) -> Sample:
    return Sample(name=name, labels=labels, kind=kind, unit=unit, value=float(value))
