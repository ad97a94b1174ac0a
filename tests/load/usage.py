"""What the process that asks has cost so far."""

import resource

import psutil


def process_usage() -> dict[str, float]:
    """CPU seconds (all threads, user and system) and resident bytes of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_s": used.ru_utime + used.ru_stime, "rss_bytes": float(psutil.Process().memory_info().rss)}
