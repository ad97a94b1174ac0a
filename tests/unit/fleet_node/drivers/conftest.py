"""Drivers that are loadable as if they were installed."""

import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint

import pytest

from tests.unit.fleet_node.drivers.arm import GROUP


@pytest.fixture
def offer() -> Iterator[Callable[..., EntryPoint]]:
    """Makes a class loadable, as an installed package would."""
    made: list[str] = []

    def make(driver: object, name: str = "arm") -> EntryPoint:
        module = f"planted_driver_{len(made)}"
        sys.modules[module] = types.ModuleType(module)
        sys.modules[module].Planted = driver  # type: ignore[attr-defined]
        made.append(module)
        return EntryPoint(name, f"{module}:Planted", GROUP)

    yield make
    for module in made:
        del sys.modules[module]
