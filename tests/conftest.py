"""Fixtures that every kind of test shares: hypothesis profiles, PostgreSQL, real processes, certificates, a
clock."""

import contextlib
import gc
import importlib
import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: tests cut connections, and that is no news
# PostgreSQL runs as another user, and that takes a real fork: what gRPC does in the child crashes every other one.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.clock import MockClock
from tests.fakes.process import Processes
from tests.fakes.tls import FakeAuthority
from tests.machine import folder_in_memory, workers

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

# No deadline: the cores are shared, and a slow example is no wrong one.
settings.register_profile("fast", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", max_examples=100, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "fast"))

if memory := folder_in_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))  # where `tmp_path` is made


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means."""
    return workers()


def import_share(config: pytest.Config) -> None:
    """Each worker collects every test, and what takes longest is to rewrite the assertions. That is kept as bytecode: a
    worker begins with modules of its own, and finds those of the others done."""
    worker = getattr(config, "workerinput", None)
    if worker is None or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    for file in files[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collector meets it again, and tells
            importlib.import_module(".".join(file.relative_to(config.rootpath).with_suffix("").parts))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Modules and tests live as long as the run: the garbage collector need not walk them, neither now nor later."""
    gc.disable()
    try:
        import_share(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def clock() -> MockClock:
    """A clock that stands still until the test moves it."""
    return MockClock()


@pytest.fixture(scope="session")
def tls_authority() -> FakeAuthority:
    """A certificate authority that the whole test session trusts."""
    return FakeAuthority()


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgresServer"]:
    """This worker's PostgreSQL server; starts when the first test asks for it."""
    from tests.fakes.postgres import PostgresServer

    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres: "PostgresServer") -> Iterator[str]:
    """SQLAlchemy URL (`postgresql+psycopg://`) of an empty database for this test alone."""
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts product processes; ends them all, and shows the tails of their logs when the test failed."""
    folder = tmp_path / "logs"
    folder.mkdir()
    started = Processes(folder)
    yield started
    started.end_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what a failed test's processes printed last beside its failure."""
    report = yield
    started = getattr(item, "funcargs", {}).get("processes")
    if report.failed and isinstance(started, Processes) and started.started:
        report.sections.append(("processes", started.tails()))
    return report
