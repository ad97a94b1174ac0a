"""What the daemon loads: memory on small machines, and no test tools."""

import subprocess
import sys


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_the_registry_loads_neither_psutil_nor_a_driver_nor_test_tools() -> None:
    names = imported_by("import fleet_node.drivers.registry")
    assert not names & {"psutil", "pytest", "fleet_node.drivers.contract", "fleet_node.drivers.host"}


def test_the_exec_driver_stays_light() -> None:
    names = imported_by("import fleet_node.drivers.exec")
    assert not names & {"psutil", "ctypes", "jsonschema_rs", "grpc", "pytest"}


def test_the_contract_needs_no_pytest() -> None:
    assert "pytest" not in imported_by("import fleet_node.drivers.contract")
