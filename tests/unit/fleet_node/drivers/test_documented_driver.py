"""The driver that docs/drivers.md tells people to write is a good one."""

import re
from pathlib import Path
from typing import Any

from fleet_node.drivers.api import Driver
from fleet_node.drivers.contract import DriverContract, Example

_PAGE = (Path(__file__).parents[4] / "docs" / "drivers.md").read_text()
_DRIVER, _TESTS = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)


def _documented() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": __name__}
    exec(_DRIVER + _TESTS, names)  # noqa: S102  the page's own code is what is tested
    return names


class TestDocumented(DriverContract):
    examples: tuple[Example, ...] = _documented()["TestLamp"].examples
    long_running: Example | None = _documented()["TestLamp"].long_running

    def make_driver(self, tmp_path: Path) -> Driver:
        driver: Driver = _documented()["TestLamp"]().make_driver(tmp_path)
        return driver
