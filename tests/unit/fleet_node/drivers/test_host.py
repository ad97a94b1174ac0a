import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fleet_node.drivers import host_disks, host_samples
from fleet_node.drivers.api import DriverConfigError, Invocation, OutcomeState, Sample
from fleet_node.drivers.host import HostDriver
from fleet_node.drivers.host_facts import ProcessUsage, top_processes


def invocation(action: str, **arguments: Any) -> Invocation:
    return Invocation(b"\1" * 16, action, arguments, 30.0, asyncio.Event(), "ann")


def by_name(samples: list[Sample]) -> dict[str, float]:
    return {sample.name: sample.value for sample in samples}


async def test_info_tells_what_this_machine_is() -> None:
    outcome = await HostDriver({}).run(invocation("host.info"))
    assert outcome.state is OutcomeState.SUCCEEDED
    assert outcome.output["hostname"] == os.uname().nodename
    assert outcome.output["kernel"] == os.uname().release
    assert outcome.output["cpu_count"] == os.cpu_count()
    assert outcome.output["memory_bytes"] == psutil.virtual_memory().total
    assert outcome.output["disks"][0]["mount"] == "/"
    assert "lo" in {one["name"] for one in outcome.output["network_interfaces"]}


async def test_processes_never_show_arguments() -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--password=hunter2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        request = invocation("host.processes", by="memory", count=100, window_ms=10)
        outcome = await HostDriver({}).run(request)
        process.kill()
    assert len(outcome.output["processes"]) <= 100
    assert all(set(one) == {"pid", "name", "user", "cpu_percent", "rss_bytes"} for one in outcome.output["processes"])
    assert "hunter2" not in str(outcome.output)


def usage(cpu_s: float, rss_bytes: int, name: str = "x") -> ProcessUsage:
    process: Any = SimpleNamespace(name=lambda: name, username=lambda: "ann")
    return ProcessUsage(process, cpu_s, rss_bytes)


def test_processes_are_sorted_by_what_was_asked() -> None:
    before = {(1, 0.0): usage(0, 10), (2, 0.0): usage(5, 30)}
    after = {(1, 0.0): usage(1, 10), (2, 0.0): usage(5, 30), (3, 9.0): usage(99, 20)}
    cpu = top_processes(before, after, 2.0, "cpu", 2)
    memory = top_processes(before, after, 2.0, "memory", 3)
    assert [(one["pid"], one["cpu_percent"]) for one in cpu] == [(1, 50.0), (2, 0.0)]
    assert [one["pid"] for one in memory] == [2, 3, 1]


def test_a_reused_pid_is_another_process() -> None:
    (only,) = top_processes({(1, 0.0): usage(0, 1)}, {(1, 7.0): usage(50, 1)}, 1.0, "cpu", 5)
    assert only["cpu_percent"] == 0.0


@pytest.mark.parametrize("error", [psutil.NoSuchProcess(1), psutil.AccessDenied(1), KeyError("uid")], ids=repr)
def test_a_process_that_cannot_be_asked_is_unknown(error: Exception) -> None:
    def fail() -> str:
        raise error

    process: Any = SimpleNamespace(name=lambda: "a\nb", username=fail)
    (only,) = top_processes({}, {(1, 0.0): ProcessUsage(process, 0, 1)}, 1.0, "cpu", 5)
    assert (only["user"], only["name"]) == ("unknown", "a\N{REPLACEMENT CHARACTER}b")


class CpuTimes(tuple[float, ...]):
    """As psutil gives them: a tuple with names."""

    user: float
    idle: float
    iowait: float
    guest: float

    def __new__(cls, user: float, idle: float, iowait: float = 0, guest: float = 0) -> "CpuTimes":
        made = super().__new__(cls, (user, idle, iowait, guest))
        made.user, made.idle, made.iowait, made.guest = user, idle, iowait, guest
        return made


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_cores(*cores: CpuTimes) -> None:
        monkeypatch.setattr(host_samples.psutil, "cpu_times", lambda percpu: list(cores))

    return set_cores


def test_cpu_percent_is_what_was_used_since_the_last_call(cpu: Callable[..., None]) -> None:
    cpu(CpuTimes(100, 100), CpuTimes(100, 100))
    sampler = host_samples.HostSampler()
    cpu(CpuTimes(101, 101), CpuTimes(100, 100.5, iowait=1.5))
    values = {(sample.name, sample.labels): sample.value for sample in sampler.sample()}
    assert values["host.cpu.percent", ()] == 25.0
    assert values["host.cpu.core.percent", (("core", "0"),)] == 50.0
    assert values["host.cpu.core.percent", (("core", "1"),)] == 0.0
    cpu(CpuTimes(102, 101), CpuTimes(101, 100.5, iowait=1.5))
    assert by_name(list(sampler.sample()))["host.cpu.percent"] == 100.0


def test_time_of_guests_counts_once(cpu: Callable[..., None]) -> None:
    cpu(CpuTimes(0, 0))
    sampler = host_samples.HostSampler()
    cpu(CpuTimes(5, 5, guest=5))
    assert by_name(list(sampler.sample()))["host.cpu.percent"] == 50.0


@pytest.mark.parametrize(
    "after", [(CpuTimes(100, 100),), (CpuTimes(99, 100),), (CpuTimes(200, 200), CpuTimes(5, 5))],
    ids=["no time passed", "a counter went back", "a core came on line"],
)  # fmt: skip
def test_a_percentage_without_a_base_is_zero(cpu: Callable[..., None], after: tuple[CpuTimes, ...]) -> None:
    cpu(CpuTimes(100, 100))
    sampler = host_samples.HostSampler()
    cpu(*after)
    assert by_name(list(sampler.sample()))["host.cpu.percent"] == 0.0


def test_a_thousand_interfaces_and_disks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = SimpleNamespace(bytes_recv=1, bytes_sent=2, errin=0, errout=0)
    disk = SimpleNamespace(read_bytes=1, write_bytes=2)
    monkeypatch.setattr(host_samples.psutil, "net_io_counters", lambda pernic: {f"veth{n}": net for n in range(1000)})
    monkeypatch.setattr(host_samples.psutil, "disk_io_counters", lambda perdisk: {f"sd{n}": disk for n in range(1000)})
    samples = list(HostDriver({}).sample())
    received = [one for one in samples if one.name == "host.network.received"]
    written = [one for one in samples if one.name == "host.disk.written"]
    assert (len(received), len(written)) == (host_samples.MAX_NICS, host_samples.MAX_DEVICES)


def test_a_machine_without_disk_counters_still_has_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_samples.psutil, "disk_io_counters", lambda perdisk: None)
    assert "host.uptime" in by_name(list(HostDriver({}).sample()))


def test_each_device_is_one_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = [
        SimpleNamespace(mountpoint=str(tmp_path), device="/dev/sda1", fstype="ext4"),
        SimpleNamespace(mountpoint="/", device="/dev/sda1", fstype="ext4"),
        SimpleNamespace(mountpoint="/etc/hostname", device="/dev/sda2", fstype="ext4"),
        SimpleNamespace(mountpoint="/tmp", device="/dev/loop1", fstype="squashfs"),
        SimpleNamespace(mountpoint="/no/such/folder", device="/dev/sdb1", fstype="ext4"),
    ]
    monkeypatch.setattr(host_disks.psutil, "disk_partitions", lambda all: mounts)
    assert [disk.mount for disk in host_disks.mounted_disks()] == ["/"]


def test_the_root_counts_even_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_disks.psutil, "disk_partitions", lambda all: [])
    (root,) = host_disks.mounted_disks()
    assert (root.mount, root.total_bytes) == ("/", psutil.disk_usage("/").total)


def test_telemetry_can_be_turned_off() -> None:
    assert list(HostDriver({"telemetry": False}).sample()) == []


def test_wrong_settings_are_named() -> None:
    with pytest.raises(DriverConfigError, match=r"drivers\.host\.interval"):
        HostDriver({"interval": 5})
