"""The shipped drivers keep the contract that every driver keeps."""

from pathlib import Path

from fleet_node.drivers.api import Driver, OutcomeState
from fleet_node.drivers.contract import DriverContract, Example
from fleet_node.drivers.exec import ExecDriver
from fleet_node.drivers.host import HostDriver
from fleet_node.drivers.simulated import SimulatedDriver


class TestHost(DriverContract):
    examples = (
        Example("host.info"),
        Example("host.processes", {"by": "memory", "count": 3, "window_ms": 10}),
    )
    long_running = Example("host.processes", {"window_ms": 10_000})

    def make_driver(self, tmp_path: Path) -> Driver:
        return HostDriver({})


class TestExec(DriverContract):
    examples = (
        Example("exec.run", {"program": "echo", "args": ["hello"]}),
        Example("exec.run", {"program": "false"}, OutcomeState.FAILED),
    )
    long_running = Example("exec.run", {"program": "sleep"})

    def make_driver(self, tmp_path: Path) -> Driver:
        programs = {
            "echo": {"path": "/bin/echo", "max_args": 2},
            "false": {"path": "/bin/false"},
            "sleep": {"path": "/bin/sleep", "args": ["3600"], "timeout_s": 3600},
        }
        return ExecDriver({"programs": programs})


class TestSimulated(DriverContract):
    examples = (
        Example("simulated.noop"),
        Example("simulated.work", {"output_bytes": 1000, "device": "pump-1"}),
        Example("simulated.work", {"fail_rate": 1}, OutcomeState.FAILED),
    )
    long_running = Example("simulated.work", {"latency_ms": 600_000})

    def make_driver(self, tmp_path: Path) -> Driver:
        tmp_path.mkdir(exist_ok=True)
        return SimulatedDriver({"log_path": str(tmp_path / "runs.log"), "series": 10})
