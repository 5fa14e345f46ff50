"""Contests as tests of pytest-benchmark, and a table of their ratios at the end."""

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
from bench import contest

ROWS = pytest.StashKey[list[tuple[str, str, str, dict[str, Any]]]]()  # node, title, side, figures
BEFORE = pytest.StashKey[dict[str, dict[str, Any]]]()  # figures of the results that --benchmark-compare names, by node


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scale", type=float, default=1.0, help="how many times the usual rounds of contests")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS], config.stash[BEFORE] = [], {}
    gym.logger.min_level = gym.logger.ERROR


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The sides of a contest follow one another, whatever has shuffled them: it is held once."""

    def place(item: pytest.Item) -> tuple[str, int]:
        call = getattr(item, "callspec", None)
        return str(item.path), call.indices.get("side", 0) if call else 0

    items.sort(key=place)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """A clock's frequency of the moment makes no other machine."""
    machine_info["cpu"] = {name: value for name, value in machine_info["cpu"].items() if not name.startswith("hz_")}


def pytest_benchmark_compare_machine_info(config: pytest.Config, compared_benchmark: dict[str, Any]) -> None:
    config.stash[BEFORE] |= {bench["fullname"]: bench["extra_info"] for bench in compared_benchmark["benchmarks"]}


@pytest.fixture(autouse=True)
def _global_generator_untouched() -> None:
    """The peers draw from it."""


@pytest.fixture(scope="session")
def race(request: pytest.FixtureRequest) -> contest.Race:
    return contest.hold(request.param, request.config.getoption("--scale"))


@pytest.fixture
def replay(request: pytest.FixtureRequest, benchmark: Any, race: contest.Race, side: str) -> Callable[[], None]:
    """Tell pytest-benchmark, and the table at the end, what the side has done in its contest."""

    def tell() -> None:
        contest.replay(benchmark, race.seconds[side])
        benchmark.extra_info.update(contest.figures(race, side))
        request.config.stash[ROWS].append((request.node.nodeid, race.contest.title, side, benchmark.extra_info))

    return tell


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, rows in itertools.groupby(config.stash[ROWS], key=lambda row: row[1]):
        table = list(rows)
        unit, peer = (table[0][-1].get(name, "") for name in ("unit", "peer"))
        terminalreporter.section(title)
        terminalreporter.write_line(f"{unit:32}{'pace':>16}{peer and f'of {peer}':>30}{'of its floor':>20}")
        for node, _, side, new in table:
            terminalreporter.write_line(line(side, new, config.stash[BEFORE].get(node, {})))


def line(side: str, new: dict[str, Any], old: dict[str, Any]) -> str:
    """A side's line of the table, with the ratios of a run before in brackets."""

    def ratio(name: str) -> str:
        return " ".join([f"{new[name]:.2f}x", *([f"({old[name]:.2f}x)"] if name in old else [])]) if name in new else ""

    pace = new["per_second"]
    notes = ", ".join(f"{name} {value:,.1f}" for name, value in new["notes"].items())
    shown = f"{pace:,.0f}/s" if pace >= 1 else f"{1 / pace:.2f} s each"
    return f"{side:32}{shown:>16}{ratio('of_peer'):>30}{ratio('of_floor'):>20}  {notes}".rstrip()
