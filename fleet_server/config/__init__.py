"""The server's settings: one frozen object, validated once, each with its source and its line."""

from fleet_server.config.settings import Settings
from fleet_server.config.sources import ConfigError, LoadedSettings, load

__all__ = ["ConfigError", "LoadedSettings", "Settings", "load"]
