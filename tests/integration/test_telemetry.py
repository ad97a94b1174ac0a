"""Telemetry from a driver's sample to an operator's screen."""

from fleet.v1 import admin_pb2
from tests.integration.installation import Installation, RunningNode
from tests.integration.waiting import eventually


async def history(installation: Installation, name: str) -> list[admin_pb2.SeriesHistory]:
    request = admin_pb2.TelemetryHistoryRequest(node=name, series_glob="simulated.*", from_ms=1)
    return list((await installation.owner.ask("TelemetryHistory", request)).series)


async def samples(installation: Installation, name: str) -> int:
    return sum(len(series.values) for series in await history(installation, name))


async def test_latest_values_and_history_of_every_series(installation: Installation) -> None:
    await installation.add_node("n-1", telemetry_interval_s=0.1, simulated={"series": 4})

    await eventually(lambda: _enough(installation, "n-1", 12), "three samples of each series are stored")

    request = admin_pb2.LatestTelemetryRequest(selector=admin_pb2.Selector(patterns=["*"]), series_glob="simulated.*")
    latest = (await installation.owner.ask("LatestTelemetry", request)).values
    assert sorted((value.name, value.labels["series"]) for value in latest) == [
        ("simulated.ticks", "1"),
        ("simulated.ticks", "3"),
        ("simulated.wave", "0"),
        ("simulated.wave", "2"),
    ]
    assert {value.node_name for value in latest} == {"n-1"}
    for series in await history(installation, "n-1"):
        assert list(series.at_ms) == sorted(series.at_ms)
        assert len(series.at_ms) == len(series.values)
        if series.name == "simulated.ticks":
            assert list(series.values) == sorted(series.values)


async def _enough(installation: Installation, name: str, wanted: int) -> bool:
    return await samples(installation, name) >= wanted


async def test_what_was_sampled_while_the_server_was_away_arrives_later_once(installation: Installation) -> None:
    proxy = await installation.proxy()
    node: RunningNode = await installation.add_node(
        "n-1", endpoints=(proxy.address,), telemetry_interval_s=0.1, simulated={"series": 2}
    )
    await eventually(lambda: _enough(installation, "n-1", 4), "telemetry flows")
    proxy.refuse()
    proxy.cut()
    await installation.owner.wait_node("n-1", lambda view: not view.online)
    assert node.node is not None
    spooled = node.node.telemetry.last_batch_seq
    await eventually(lambda: node.node.telemetry.last_batch_seq >= spooled + 5, "telemetry is spooled")  # type: ignore[union-attr]
    proxy.heal()

    async def whole() -> bool:
        ticks = next(series for series in await history(installation, "n-1") if series.name == "simulated.ticks")
        return len(ticks.values) > 8 and list(ticks.values) == [float(no + 1) for no in range(len(ticks.values))]

    assert await eventually(whole, "every tick is there, once, without a gap")


async def test_a_server_restart_costs_no_acknowledged_sample(installation: Installation) -> None:
    await installation.add_node("n-1", telemetry_interval_s=0.1, simulated={"series": 2})
    await eventually(lambda: _enough(installation, "n-1", 6), "telemetry flows")
    before = await samples(installation, "n-1")

    await installation.crash_server()
    await installation.start_server()

    assert await samples(installation, "n-1") >= before
    await eventually(lambda: _enough(installation, "n-1", before + 6), "telemetry flows again")
    ticks = next(series for series in await history(installation, "n-1") if series.name == "simulated.ticks")
    assert list(ticks.values) == [float(no + 1) for no in range(len(ticks.values))]


async def test_telemetry_never_holds_up_a_command(installation: Installation) -> None:
    await installation.add_node("n-1", telemetry_interval_s=0.1, simulated={"series": 2000})

    for _ in range(5):
        (view,) = await installation.owner.run("n-1")
        assert view.state == 5
