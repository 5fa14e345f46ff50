import json
from contextlib import contextmanager

from bench.contest import Contest, Stretch, figures, hold

pytest_plugins = ["pytester"]
SECONDS = {"ours": [0.1, 0.7, 0.3], "theirs": [0.3, 0.7, 1.2], "bare": [0.05, 0.35, 0.27]}
log = []


@contextmanager
def opened(rounds):
    times = {side: iter(seconds) for side, seconds in SECONDS.items()}

    def side(name):
        log.append(name)
        return Stretch(500, next(times[name]), {"wall": 2.0})

    yield {name: lambda name=name: side(name) for name in SECONDS}


floors = {"ours": lambda seconds: seconds["bare"]}
CONTEST = Contest("c", "A contest", tuple(SECONDS), opened, ("theirs",), floors, rounds=3, per=500, warm=False)


def test_sides_take_turns_and_every_other_round_is_reversed():
    log.clear()
    race = hold(CONTEST, 1.0)
    assert log == ["ours", "theirs", "bare", "bare", "theirs", "ours", "ours", "theirs", "bare"]
    assert race.seconds == SECONDS
    assert hold(CONTEST, 0.0).seconds == {name: seconds[:1] for name, seconds in SECONDS.items()}


def test_a_side_has_a_turn_that_does_not_count():
    race = hold(CONTEST._replace(warm=True, rounds=2), 1.0)
    assert race.seconds["theirs"] == SECONDS["theirs"][1:]


def test_a_side_is_timed():
    side = lambda: 10  # noqa: E731
    race = hold(Contest("c", "t", ("a",), contextmanager(lambda rounds: iter([{"a": side}])), rounds=2), 1.0)
    assert len(race.seconds["a"]) == 2
    assert all(0 < x < 1 for x in race.seconds["a"])


def test_ratios_are_medians_of_the_rounds_ratios():
    race = hold(CONTEST, 1.0)
    found = figures(race, "ours")
    assert found["of_peer"] == 0.3 / 0.1
    assert found["of_floor"] == 0.35 / 0.7
    assert found["per_second"] == 500 / 0.3
    assert found["peer"] == "theirs"
    assert found["notes"] == {"wall": 2.0}
    assert "of_floor" not in figures(race, "theirs")
    faster = hold(CONTEST._replace(peers=("theirs", "bare")), 1.0)
    assert figures(faster, "ours")["peer"] == "bare"


def test_pytest_benchmark_has_the_durations_exactly_and_compares_two_runs(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # beside other tests pytest-benchmark measures nothing
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("""
        from bench.contest import by_turns
        from test_contest import CONTEST

        @by_turns(CONTEST)
        def test_c(replay):
            replay()
    """)
    run = ("-p", "pytest_benchmark.plugin", "-p", "bench.conftest", "--benchmark-storage=file://saved", "--benchmark-json=now.json")
    pytester.runpytest(*run, "--benchmark-autosave").assert_outcomes(passed=3)
    found = json.loads((pytester.path / "now.json").read_text())["benchmarks"]
    assert {bench["name"]: bench["stats"]["data"] for bench in found} == {f"test_c[c: {name}]": x for name, x in SECONDS.items()}
    assert {bench["group"] for bench in found} == {"A contest"}
    assert found[0]["extra_info"]["of_peer"] == 0.3 / 0.1
    again = pytester.runpytest(*run, "--benchmark-compare")
    again.stdout.fnmatch_lines(
        ["*benchmark 'A contest': 6 tests*", "*A contest*", "ours*1,667/s*3.00x (3.00x)*0.50x (0.50x)*wall 2.0"]
    )
