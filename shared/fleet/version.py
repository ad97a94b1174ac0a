"""The software's version, from the installed package; hellos, metrics and `version` verbs say the same."""

from __future__ import annotations

from functools import cache
from importlib import metadata

_DISTRIBUTION = "fleet-gateway"


@cache
def software_version() -> str:
    """Version of the installed distribution; `0+unknown` when the code runs without having been installed."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+unknown"
