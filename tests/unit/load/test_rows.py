"""The table of load rows is complete, and each row judges as its budget says."""

import pytest

from tests.load.results import Figures
from tests.load.rows import DEFAULT_ROWS, ROWS, named

_BUDGETED = ["A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8", "T1", "T2", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "R1"]

_ROLLED = {"lost": 0, "ran_twice": 0, "refused_without_delay": 0, "gap_p99_s": 0.3, "quiet_gap_p99_s": 0.1}

_ROUTES = {"routes_cpu_percent": 4.0, "without_routes_cpu_percent": 2.0, "on_postgres_routes_cpu_percent": 4.0}

# row, product, baseline, ratio, met
_CASES: list[tuple[str, Figures, Figures, float, bool]] = [
    ("A1", {"commands_per_s": 1000}, {"commands_per_s": 1000}, 1.0, True),
    ("A1", {"commands_per_s": 999}, {"commands_per_s": 1000}, 0.999, False),
    ("A2", {"p50_us": 1100, "p99_us": 3300}, {"p50_us": 200, "allowed_p50_us": 1100}, 5.5, True),
    ("A2", {"p50_us": 1101, "p99_us": 3300}, {"p50_us": 200, "allowed_p50_us": 1100}, 5.505, False),
    ("A2", {"p50_us": 1100, "p99_us": 3301}, {"p50_us": 200, "allowed_p50_us": 1100}, 5.5, False),
    ("A3", {"messages_per_core_s": 600}, {"messages_per_core_s": 1000}, 0.6, True),
    ("A3", {"messages_per_core_s": 599}, {"messages_per_core_s": 1000}, 0.599, False),
    ("A4", {"messages_per_core_s": 250, "samples_per_core_s": 1e6}, {"messages_per_core_s": 1000}, 0.25, True),
    ("A4", {"messages_per_core_s": 250, "samples_per_core_s": 999_999}, {"messages_per_core_s": 1000}, 0.25, False),
    ("A5", {"kib_per_node": 150}, {"kib_per_node": 100}, 1.5, True),
    ("A5", {"kib_per_node": 151}, {"kib_per_node": 100}, 1.51, False),
    ("A6", {"server_cpu_us_per_node_s": 60}, {"server_cpu_us_per_node_s": 30}, 2.0, True),
    ("A6", {"server_cpu_us_per_node_s": 61}, {"server_cpu_us_per_node_s": 30.5}, 2.0, False),
    ("A7", {"rss_mib": 75, "idle_cpu_percent": 0.5, "start_to_stream_s": 1.5}, {"rss_mib": 50}, 1.5, True),
    ("A7", {"rss_mib": 76, "idle_cpu_percent": 0.5, "start_to_stream_s": 1.5}, {"rss_mib": 50}, 1.52, False),
    ("A7", {"rss_mib": 75, "idle_cpu_percent": 0.6, "start_to_stream_s": 1.5}, {"rss_mib": 50}, 1.5, False),
    ("A7", {"rss_mib": 75, "idle_cpu_percent": 0.5, "start_to_stream_s": 1.6}, {"rss_mib": 50}, 1.5, False),
    ("A8", {"help_s": 0.25, "nodes_list_s": 0.6}, {"import_grpc_s": 0.1}, 6.0, True),
    ("A8", {"help_s": 0.26, "nodes_list_s": 0.6}, {"import_grpc_s": 0.1}, 6.0, False),
    ("A8", {"help_s": 0.25, "nodes_list_s": 0.7}, {"import_grpc_s": 0.1}, 7.0, False),
    ("T1", {"p99_us": 3000, "streams_lost": 0}, {"p99_us": 1000}, 3.0, True),
    ("T1", {"p99_us": 3001, "streams_lost": 0}, {"p99_us": 1000}, 3.001, False),
    ("T1", {"p99_us": 3000, "streams_lost": 1}, {"p99_us": 1000}, 3.0, False),
    ("T2", {"suspend_max_s": 1.0, "revoke_max_s": 0.5, "rotate_p50_s": 2.0}, {"suspend_max_s": 0.1}, 10.0, True),
    ("T2", {"suspend_max_s": 0.5, "last_run_max_s": 1.01}, {"suspend_max_s": 0.1}, 10.1, False),
    ("C1", {"commands_per_s": 800, "two_over_one": 0.5}, {"commands_per_s": 1000}, 0.8, True),
    ("C1", {"commands_per_s": 799, "two_over_one": 2.0}, {"commands_per_s": 1000}, 0.799, False),
    ("C2", {"last_result_s": 0.6, "us_per_node": 10, "many_us_per_node": 12}, {"last_answer_s": 0.1}, 6.0, True),
    ("C2", {"last_result_s": 0.61, "us_per_node": 10, "many_us_per_node": 10}, {"last_answer_s": 0.1}, 6.1, False),
    ("C2", {"last_result_s": 0.6, "us_per_node": 10, "many_us_per_node": 12.1}, {"last_answer_s": 0.1}, 6.0, False),
    ("C3", {"all_back_s": 10.0, "refused_without_delay": 0}, {"tls_all_back_s": 2.5}, 4.0, True),
    ("C3", {"all_back_s": 10.1, "refused_without_delay": 0}, {"tls_all_back_s": 10.1}, 1.0, False),
    ("C3", {"all_back_s": 5.0, "refused_without_delay": 1}, {"tls_all_back_s": 5.0}, 1.0, False),
    ("C4", _ROLLED, {}, 3.0, True),
    ("C4", {**_ROLLED, "gap_p99_s": 1.0}, {}, 10.0, False),
    ("C4", {**_ROLLED, "lost": 1}, {}, 3.0, False),
    ("C4", {**_ROLLED, "ran_twice": 1}, {}, 3.0, False),
    ("C4", {**_ROLLED, "refused_without_delay": 1}, {}, 3.0, False),
    ("C5", {"server_cpu_us_per_command": 13, "few_server_cpu_us_per_command": 10}, {}, 1.3, True),
    ("C5", {"server_cpu_us_per_command": 14, "few_server_cpu_us_per_command": 10}, {}, 1.4, False),
    ("C6", {"server_kib_per_stream": 1.0, "nodes_kib_per_stream": -0.5}, {}, 1.0, True),
    ("C6", {"server_kib_per_stream": 0.1, "nodes_kib_per_stream": 1.1}, {}, 1.1, False),
    ("C7", {"commits_per_command": 0.1}, {"commits_per_row_of_32": 0.05}, 2.0, True),
    ("C7", {"commits_per_command": 0.11}, {"commits_per_row_of_32": 0.05}, 2.2, False),
    ("R1", {**_ROUTES, "routes_cpu_percent": 4.9}, {}, 3.45, True),
    ("R1", {**_ROUTES, "routes_cpu_percent": 5.1}, {}, 3.55, False),
    ("R1", {**_ROUTES, "on_postgres_routes_cpu_percent": 5.1}, {}, 3.0, False),
]


def test_every_budgeted_row_measures_the_product_and_judges_it() -> None:
    for name in _BUDGETED:
        row = ROWS[name]
        assert row.product is not None
        assert row.judge is not None
        assert row.workload
        assert row.budget


def test_the_default_run_is_the_machine_and_one_process_on_sqlite() -> None:
    assert ["M1", *(name for name in _BUDGETED if name[0] in "AT")] == DEFAULT_ROWS
    assert set(ROWS) == {"M1", *_BUDGETED}


def test_rows_are_named_one_by_one_or_as_a_group() -> None:
    assert named([]) == DEFAULT_ROWS
    assert named(["t2", "A1"]) == ["A1", "T2"]
    assert named(["C"]) == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    with pytest.raises(KeyError, match="X9, B"):
        named(["X9", "A1", "B"])


@pytest.mark.parametrize(("name", "product", "baseline", "ratio", "met"), _CASES)
def test_a_row_judges_as_its_budget_says(
    name: str, product: Figures, baseline: Figures, ratio: float, met: bool
) -> None:
    judge = ROWS[name].judge
    assert judge is not None
    verdict = judge(product, baseline)
    assert verdict.ratio == pytest.approx(ratio)
    assert verdict.met is met


def test_every_budgeted_row_has_a_case_on_either_side_of_its_limit() -> None:
    assert {(name, met) for name, *_, met in _CASES} == {(name, met) for name in _BUDGETED for met in (True, False)}
