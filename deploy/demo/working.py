"""Steps 4 and 5: telemetry of this very machine, and signed commands to every node."""

import json
from typing import Any

import psutil

from deploy.demo.admin import AdminClient
from deploy.demo.installation import NODES, Installation
from deploy.demo.stage import Stage
from fleet_node.drivers.host_samples import HostSampler

_MIB = 1024 * 1024


def telemetry(stage: Stage, here: Installation) -> None:
    """CPU, memory, disk and network as each node measures them."""
    stage.command("fleetctl", "telemetry", "latest", "--series", "host.*")
    by_node: dict[str, dict[str, list[Any]]] = {}
    offered = {sample.name for sample in HostSampler().sample()}  # a container may have no disk or network of its own

    def measured() -> bool:
        by_node.clear()
        for value in here.fleetctl("telemetry", "latest", "--series", "host.*"):
            by_node.setdefault(value["node_name"], {}).setdefault(value["name"], []).append(value)
        return all(by_node.get(node, {}).keys() >= offered for node in NODES)

    here.wait(measured, "CPU, memory, disk and network of every node")
    headings = [heading for heading, _, _ in _SHOWN]
    rows = [
        (node, *(show(by_node[node][name]) if name in offered else "none here" for _, name, show in _SHOWN))
        for node in NODES
    ]
    stage.table(("node", *headings), rows, right=headings)
    series = {node: sum(len(values) for values in by_node[node].values()) for node in NODES}
    stage.check(min(series.values()) >= len(offered), f"live values of {series[NODES[0]]} series a node")
    totals = {by_node[node]["host.memory.total"][0]["value"] for node in NODES}
    stage.check(totals == {psutil.virtual_memory().total}, "they are of this very machine: its memory, to the byte")


def commands(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """Three actions to three nodes: signed, numbered, verified, run, answered."""
    keys = here.fleetctl("keys", "list")
    active = {key["key_id"] for key in keys["command_keys"] if key["phase"] == "ACTIVE"}
    version = keys["bundle_version"]
    outcomes = []
    for action, arguments in (("host.info", []), ("host.processes", []), ("exec.run", ["--arg", "program=kernel"])):
        run = ["run", "*", action, *arguments]
        stage.command("fleetctl", *run)
        outcomes += [(action, view) for view in here.fleetctl(*run)["commands"]]
    holders = {name: node.bundle_version for name, node in admin.nodes().items()}
    rows = []
    for action, view in outcomes:
        held = holders[view["node_name"]]
        good = view["key_id"] in active and (held.generation, held.number) == (version["generation"], version["number"])
        verified = f"in bundle {held.generation}.{held.number}" if good and view["accepted_at"] else "NO"
        rows.append(
            (
                view["node_name"],
                action,
                view["monotonic_seq"],
                view["key_id"][:8],
                verified,
                view["state"],
                _result(view),
            )
        )
    stage.table(
        ("node", "action", "seq", "key id", "certified", "state", "result"),
        rows,
        right=("seq",),
        whole=("node", "action", "key id", "certified", "state"),
        cut=("result",),
    )
    stage.check(len(outcomes) == 9 and all(view["state"] == "SUCCEEDED" for _, view in outcomes), "9 of 9 succeeded")
    stage.check(
        all(row[4] != "NO" for row in rows),
        f"each under key {next(iter(active))[:8]}, which the node's own bundle certifies",
    )
    for node in NODES:
        seqs = [view["monotonic_seq"] for _, view in outcomes if view["node_name"] == node]
        stage.check(seqs == list(range(seqs[0], seqs[0] + 3)), f"{node}: monotonic_seq {', '.join(map(str, seqs))}")
    refused = here.fleetctl("run", "*", "exec.run", "--arg", "program=reboot", expect=3)
    reasons = {one["reason"] for one in refused["refused"]}
    stage.check(
        reasons == {"ARGUMENTS_INVALID"},
        "exec.run of a program that no node's config lists: refused, ARGUMENTS_INVALID",
    )


def _result(view: dict[str, Any]) -> str:
    output = view["output"] or {}
    if "stdout" in output:
        return str(output["stdout"]).strip()
    if "processes" in output:
        return f"{len(output['processes'])} processes"
    return _excerpt({key: value for key, value in output.items() if not isinstance(value, (dict, list))})


def _excerpt(value: dict[str, Any], cells: int = 44) -> str:
    text = " ".join(f"{key}={item}" for key, item in value.items()) or json.dumps(value)
    return text if len(text) <= cells else text[: cells - 1] + "…"


def _percent(values: list[Any]) -> str:
    return f"{values[0]['value']:.0f} %"


def _root_disk(values: list[Any]) -> str:
    largest = max(values, key=lambda each: each["labels"].get("mount", "") == "/")
    return f"{largest['value']:.0f} %"


def _mib(values: list[Any]) -> str:
    return f"{sum(each['value'] for each in values) / _MIB:,.0f} MiB"


_SHOWN = (
    ("CPU", "host.cpu.percent", _percent),
    ("memory", "host.memory.percent", _percent),
    ("disk /", "host.disk.percent", _root_disk),
    ("received", "host.network.received", _mib),
    ("sent", "host.network.sent", _mib),
)
