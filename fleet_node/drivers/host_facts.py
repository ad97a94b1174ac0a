"""What this machine is and what runs on it. Blocking: call it in a worker thread."""

from __future__ import annotations

import contextlib
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import psutil

from fleet_node.drivers.host_disks import mounted_disks
from fleet_node.drivers.json_text import line_within

MAX_NETWORK_INTERFACES: Final = 32
MAX_ADDRESSES: Final = 16
MAX_NAME_CHARS: Final = 64

_NO_INFORMATION = "unknown"


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """One process at one moment.

    Args:
        process: to ask for more; it knows when its pid was given to another process.
        cpu_s: CPU seconds used so far.
        rss_bytes: resident memory.
    """

    process: psutil.Process
    cpu_s: float
    rss_bytes: int


def describe_host() -> dict[str, Any]:
    """Answer of `host.info`: operating system, hardware, disks and network interfaces, within fixed
    bounds.
    """
    memory = psutil.virtual_memory()
    return {
        "hostname": socket.gethostname(),
        "os": platform.system(),
        "distribution": _distribution(),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python_version": platform.python_version(),
        "software_version": _software_version(),
        "boot_time_s": psutil.boot_time(),
        "cpu_count": psutil.cpu_count(logical=True),
        "cpu_cores": psutil.cpu_count(logical=False),
        "memory_bytes": memory.total,
        "swap_bytes": psutil.swap_memory().total,
        "disks": [
            {
                "mount": disk.mount,
                "device": disk.device,
                "filesystem": disk.filesystem,
                "total_bytes": disk.total_bytes,
                "free_bytes": disk.free_bytes,
            }
            for disk in mounted_disks()
        ],
        "network_interfaces": _network_interfaces(),
    }


def process_usage() -> dict[tuple[int, float], ProcessUsage]:
    """CPU and memory of every process that may be seen, by pid and start time (a pid alone is reused)."""
    usage: dict[tuple[int, float], ProcessUsage] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error), process.oneshot():
            times = process.cpu_times()
            key = (process.pid, process.create_time())
            rss_bytes = process.memory_info().rss
            usage[key] = ProcessUsage(process, times.user + times.system, rss_bytes)
    return usage


def top_processes(
    before: Mapping[tuple[int, float], ProcessUsage],
    after: Mapping[tuple[int, float], ProcessUsage],
    elapsed_s: float,
    by: str,
    count: int,
) -> list[dict[str, Any]]:
    """Answer of `host.processes`. Names only: command lines hold passwords and tokens on real machines.

    Args:
        before: an earlier `process_usage`.
        after: a later one.
        elapsed_s: seconds between the two.
        by: "cpu" or "memory".
        count: how many.
    """

    def cpu_percent(key: tuple[int, float]) -> float:
        if key not in before or elapsed_s <= 0:
            return 0.0
        return max(0.0, after[key].cpu_s - before[key].cpu_s) / elapsed_s * 100

    def weight(key: tuple[int, float]) -> tuple[float, float]:
        cpu, rss = cpu_percent(key), float(after[key].rss_bytes)
        return (cpu, rss) if by == "cpu" else (rss, cpu)

    return [
        {
            "pid": key[0],
            "name": _asked(after[key].process.name),
            "user": _asked(after[key].process.username),
            "cpu_percent": round(cpu_percent(key), 1),
            "rss_bytes": after[key].rss_bytes,
        }
        for key in sorted(after, key=weight, reverse=True)[:count]
    ]


def _asked(question: Callable[[], str]) -> str:
    """A name of a process that may have ended or be hidden meanwhile."""
    try:
        return line_within(question(), MAX_NAME_CHARS)
    except (psutil.Error, KeyError, OSError):  # KeyError: a user id without an entry
        return _NO_INFORMATION


def _network_interfaces() -> list[dict[str, Any]]:
    stats = psutil.net_if_stats()
    interfaces = []
    for name, addresses in sorted(psutil.net_if_addrs().items())[:MAX_NETWORK_INTERFACES]:
        found = stats.get(name)
        interfaces.append(
            {
                "name": line_within(name, MAX_NAME_CHARS),
                "up": found.isup if found else False,
                "speed_mbit": found.speed if found else 0,
                "mtu": found.mtu if found else 0,
                "mac": _first_address(addresses, psutil.AF_LINK),
                "addresses": [one.address for one in addresses if one.family in (socket.AF_INET, socket.AF_INET6)][
                    :MAX_ADDRESSES
                ],
            }
        )
    return interfaces


def _first_address(addresses: Sequence[Any], family: int) -> str:
    return next((one.address for one in addresses if one.family == family), "")


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:  # not Linux, or an image without the file
        return ""


def _software_version() -> str:
    try:
        return version("fleet-gateway")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return _NO_INFORMATION
