"""Contests: sides that are measured by turns, because a machine's speed drifts by more than what is to be told apart."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest
import torch


class Stretch(NamedTuple):
    """A stretch of work, in the seconds that count where they are not those that pass around it, and other figures of it."""

    units: float
    seconds: float
    notes: Mapping[str, float] = {}


Side = Callable[[], float | Stretch]  # does a stretch of work and tells how many units it was


def repeated(f: Callable[[], object], n: int, units: float) -> Side:
    """A side that calls so many times what does so many units."""

    def side() -> float:
        for _ in range(n):
            f()
        return n * units

    return side


class Contest(NamedTuple):
    """What is measured by turns.

    Attributes:
        name, title: in the tests' names; above the tables.
        sides: names, in the order of their turns, which every other round reverses.
        open: `open(rounds)`, a context that gives each name its side.
        peers: sides of which the faster one is what all are compared with.
        floors: for some sides, what they cannot be faster than, from the seconds of all sides in one round.
        rounds: how many at `--scale 1`.
        unit, per: what the work is counted in, and how many of them the recorded seconds are for.
        warm: whether each side has a turn before that does not count.
    """

    name: str
    title: str
    sides: tuple[str, ...]
    open: Callable[[int], AbstractContextManager[Mapping[str, Side]]]
    peers: tuple[str, ...] = ()
    floors: Mapping[str, Callable[[Mapping[str, float]], float]] = {}
    rounds: int = 15
    unit: str = "env steps"
    per: int = 1000
    warm: bool = True


class Race(NamedTuple):
    """A contest that has been held: for each side the seconds of `per` units, one number a round, and medians of its notes."""

    contest: Contest
    seconds: dict[str, list[float]]
    notes: dict[str, dict[str, float]]


def hold(contest: Contest, scale: float) -> Race:
    """Give every side a turn in every round."""
    rounds = max(1, round(contest.rounds * scale))
    turns: dict[str, list[Stretch]] = {side: [] for side in contest.sides}
    with contest.open(rounds) as sides:
        for side in contest.sides if contest.warm else ():
            turn(sides[side])
        gc.collect()
        gc.freeze()  # as `purerl train` does once everything is compiled
        for i in range(rounds):
            for side in contest.sides[:: -1 if i % 2 else 1]:
                turns[side].append(turn(sides[side]))
    gc.unfreeze()
    seconds = {side: [x.seconds / x.units * contest.per for x in done] for side, done in turns.items()}
    notes = {side: {name: statistics.median(x.notes[name] for x in done) for name in done[0].notes} for side, done in turns.items()}
    return Race(contest, seconds, notes)


def turn(side: Side) -> Stretch:
    """One stretch of a side. Torch has one thread, faster for the peers too, whose environments or rivals need the other cores."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    done = side()
    seconds = time.perf_counter() - start
    return done if isinstance(done, Stretch) else Stretch(done, seconds)


def figures(race: Race, side: str) -> dict[str, Any]:
    """What a side's saved results say besides its seconds: its pace, its notes, and how many times as fast it is as the faster peer
    and as its floor: medians of each round's ratio, which are steadier than ratios of medians.
    """
    contest, own = race.contest, race.seconds[side]

    def times_as_fast(others: list[float]) -> float:
        return statistics.median(other / x for x, other in zip(own, others, strict=True))

    found = {"unit": contest.unit, "per_second": contest.per / statistics.median(own), "notes": race.notes[side]}
    if contest.peers:
        peer = min(contest.peers, key=lambda name: statistics.median(race.seconds[name]))
        found |= {"peer": peer, "of_peer": times_as_fast(race.seconds[peer])}
    if side in contest.floors:
        rounds = [dict(zip(race.seconds, each, strict=True)) for each in zip(*race.seconds.values(), strict=True)]
        found["of_floor"] = times_as_fast([contest.floors[side](each) for each in rounds])
    return found


_now = 0.0


def clock() -> float:
    """What time it is for pytest-benchmark."""
    return _now


def replay(benchmark: Any, durations: list[float]) -> None:
    """Let pytest-benchmark measure by `clock` what has been measured before."""
    times = iter([x for duration in durations for x in (0.0, duration)])

    def tick() -> None:
        global _now
        _now = next(times)

    benchmark.pedantic(tick, setup=tick, rounds=len(durations))


def by_turns(*contests: Contest) -> pytest.MarkDecorator:
    """One test for each side of each contest; those of a contest are one group in pytest-benchmark's tables."""

    def cases() -> Iterator[Any]:
        for contest in contests:
            mark = pytest.mark.benchmark(group=contest.title, timer=clock)
            for side in contest.sides:
                yield pytest.param(contest, side, id=f"{contest.name}: {side}", marks=mark)

    return pytest.mark.parametrize(("race", "side"), list(cases()), indirect=["race"], scope="session")
