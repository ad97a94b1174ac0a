"""What the machine that the tests run on has to give: memory for their files, and cores for their workers."""

import os
import shutil
from pathlib import Path

import psutil

MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 * 1024**3
_WORKER_BYTES = 1024**3
_MOST_WORKERS = 8


def folder_in_memory(place: Path = MEMORY) -> Path | None:
    """Where files stand that nobody needs after a power cut, and no commit waits for a disk; None where that is not to
    be had. Each test of a node or of a server commits dozens of times."""
    try:
        if not os.access(place, os.W_OK) or os.statvfs(place).f_flag & os.ST_NOEXEC:
            return None
        room = min(shutil.disk_usage(place).free, psutil.virtual_memory().available)
    except OSError:
        return None
    return place if room >= _ROOM_BYTES else None


def workers() -> int:
    """One more than there are cores, for a test also waits; each has a PostgreSQL server, and takes memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores + 1, _MOST_WORKERS, psutil.virtual_memory().available // _WORKER_BYTES))
