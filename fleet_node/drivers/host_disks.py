"""The disks that this machine's own filesystems lie on, each once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import psutil

from fleet_node.drivers.json_text import line_within

MAX_DISKS: Final = 16
MAX_LABEL_CHARS: Final = 128

_ALWAYS_FULL = frozenset({"squashfs", "iso9660", "udf", "erofs"})


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted filesystem."""

    mount: str
    device: str
    filesystem: str
    total_bytes: int
    used_bytes: int
    free_bytes: int


def mounted_disks() -> list[Disk]:
    """At most MAX_DISKS filesystems, the root first, then by mount point.

    Only those with a device of this machine: asking a network filesystem whose server is away would block for
    ever. Of several mounts of one device the shortest counts (containers mount single files of the host's
    disk). Read-only images are always full and say nothing.
    """
    disks: list[Disk] = []
    seen: set[str] = set()
    for mount, device, filesystem in sorted(_mounts(), key=lambda one: (one[0] != "/", len(one[0]), one[0])):
        if len(disks) >= MAX_DISKS:
            break
        if device in seen or filesystem in _ALWAYS_FULL:
            continue
        with contextlib.suppress(OSError):  # unmounted meanwhile, or not for this user
            usage = psutil.disk_usage(mount)
            seen.add(device)
            disks.append(
                Disk(
                    line_within(mount, MAX_LABEL_CHARS),
                    line_within(device, MAX_LABEL_CHARS),
                    filesystem,
                    usage.total,
                    usage.used,
                    usage.free,
                )
            )
    return disks


def _mounts() -> Iterator[tuple[str, str, str]]:
    """Mount point, device and filesystem; the root even where it is a container's overlay without a
    device.
    """
    root_seen = False
    for partition in psutil.disk_partitions(all=False):
        root_seen |= partition.mountpoint == os.sep
        if os.path.isdir(partition.mountpoint):
            yield partition.mountpoint, partition.device, partition.fstype
    if not root_seen:
        yield os.sep, "", ""
