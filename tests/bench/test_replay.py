"""Replays of a million transitions: beside the bare gather and scatter of the same bytes, and the prioritized ones of others."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from bench import rivals
from bench.contest import Contest, Side, by_turns, repeated

from purerl import Batch, compile, envs, random, replay, scan, tree

M, N_ENVS = 32, 8  # items of a call
BATCH, TURNS = 256, 100  # of prioritized sampling
SPEC = envs.make("CartPole-v1").spec
ALPHA, BETA, GAMMA = torch.tensor(0.6), torch.tensor(0.4), torch.tensor(0.99)


WAYS = (", bare", ", in a loop", ", call by call")
FLOORS = {"add": lambda seconds: seconds["add, bare"], "sample": lambda seconds: seconds["sample, bare"]}


def steps(n_steps: int, n_envs: int) -> Batch:
    """A batch of one endless episode."""
    obs, zeros = torch.rand(n_steps * n_envs + 1, 4), torch.zeros(n_steps * n_envs)
    never = zeros.bool()
    stream = replay.from_arrays(obs[:-1], zeros.long(), zeros + 1, never, never, obs[1:])
    return tree.map(lambda x: x[: n_steps * n_envs].reshape(n_steps, n_envs, *x.shape[2:]).clone(), stream.replace(last=None))


def filled(make: Callable, capacity: int, n_envs: int) -> tuple[replay.Replay, replay.ReplayState, Callable]:
    """A full replay, and its `add`, compiled."""
    memory = make(SPEC, capacity, n_envs)
    state, add = memory.init(None), compile(memory.add)
    batch = steps(10_000 // n_envs, n_envs)
    for _ in range(-(-capacity // 10_000) + 1):
        state = add(state, batch, ALPHA)
    return memory, state, add


def bare(capacity: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Scatter and gather of a transition's bytes by hand, at random rows."""
    fields = {"obs": torch.zeros(capacity, 4), "action": torch.zeros(capacity, dtype=torch.int64), "reward": torch.zeros(capacity)}
    fields |= {"flags": torch.zeros(capacity, dtype=torch.uint8), "index": torch.zeros(capacity, dtype=torch.int32)}
    new = {name: x[:M].clone() for name, x in fields.items()}
    draws = iter_rows(capacity)

    def scatter() -> None:
        rows = next(draws)
        for name, x in fields.items():
            x.index_put_((rows,), new[name])

    def gather() -> None:
        rows = next(draws)
        for x in [*fields.values(), fields["obs"], fields["flags"]]:  # those of the next observation too
            x[rows]

    return scatter, gather


def iter_rows(capacity: int) -> Iterator[torch.Tensor]:
    pool = torch.randint(0, capacity, (1000, M))
    while True:
        yield from pool


@contextmanager
def uniform(capacity: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    memory, state, add = filled(replay.make_uniform, capacity, N_ENVS)
    batch = steps(M // N_ENVS, N_ENVS)

    def draw(state: replay.ReplayState, key: torch.Tensor) -> tuple[replay.ReplayState, dict]:
        sample = memory.sample(state, key, M, GAMMA, BETA)
        return state, {"seen": sum(x.float().sum() for x in tree.leaves(sample.transitions))}

    sample = compile(lambda state, key: memory.sample(state, key, M, GAMMA, BETA))
    adds = compile(lambda state, keys: scan(lambda state, key: (memory.add(state, batch, ALPHA), {}), state, keys))
    samples = compile(lambda state, keys: scan(draw, state, keys))
    n = 0

    def keys() -> torch.Tensor:
        nonlocal n
        n += 1
        return random.split(random.key(n), TURNS)

    def add_call_by_call() -> None:
        nonlocal state
        for _ in range(TURNS):
            state = add(state, batch, ALPHA)

    def add_in_a_loop() -> None:
        nonlocal state
        state, _ = adds(state, keys())

    def sample_call_by_call() -> None:
        for key in keys():
            sample(state, key)

    def sample_in_a_loop() -> None:
        nonlocal state
        state, _ = samples(state, keys())

    scatter, gather = bare(capacity)
    yield {
        "add, bare": repeated(scatter, 5 * TURNS, 1),
        "add, in a loop": repeated(add_in_a_loop, 5, TURNS),
        "add, call by call": repeated(add_call_by_call, 5, TURNS),
        "sample, bare": repeated(gather, 5 * TURNS, 1),
        "sample, in a loop": repeated(sample_in_a_loop, 5, TURNS),
        "sample, call by call": repeated(sample_call_by_call, 5, TURNS),
    }


@contextmanager
def prioritized(capacity: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    memory, start, _ = filled(replay.make_prioritized, capacity, 1)

    def turn(state: replay.ReplayState, key: torch.Tensor) -> tuple[replay.ReplayState, dict]:
        keys = random.split(key)
        sample = memory.sample(state, keys[0], BATCH, GAMMA, BETA)
        seen = sum(x.float().sum() for x in tree.leaves((sample.weights, sample.transitions)))
        return memory.update(state, sample.rows, random.uniform(keys[1], (BATCH,)) + 0.01, ALPHA), {"seen": seen}

    state, n = start, 0
    many = compile(lambda state, key: scan(turn, state, random.split(key, TURNS)))
    one = compile(turn)

    def loop() -> None:
        nonlocal state, n
        state, _ = many(state, random.key(n))
        n += 1

    def call() -> None:
        nonlocal state, n
        state, _ = one(state, random.key(n))
        n += 1

    with ExitStack() as peers:
        arguments = (capacity, BATCH, TURNS)
        yield {
            "in a loop": repeated(loop, 1, TURNS),
            "call by call": repeated(call, TURNS, 1),
            "flashbax": peers.enter_context(rivals.rival("jax", "flashbax_replay.py", *arguments, 1)),
            "flashbax, no weights": peers.enter_context(rivals.rival("jax", "flashbax_replay.py", *arguments, 0)),
            "TorchRL": peers.enter_context(rivals.rival("torchrl", "torchrl_replay.py", *arguments)),
        }


@by_turns(
    *(
        Contest(
            name=f"uniform-{capacity}",
            title=f"A uniform replay of {capacity:,}: add {M} steps, sample {M} transitions",
            sides=tuple(f"{what}{how}" for what in ("add", "sample") for how in WAYS),
            open=partial(uniform, capacity),
            floors={f"{what}{how}": FLOORS[what] for what in ("add", "sample") for how in WAYS[1:]},
            unit="calls",
            per=1,
        )
        for capacity in (10_000, 1_000_000)
    ),
    *(
        Contest(
            name=f"prioritized-{peer}",
            title=f"A prioritized replay of 1,000,000: sample {BATCH} and write their priorities, beside {peer}",
            sides=("in a loop", "call by call", peer),
            open=partial(prioritized, 1_000_000),
            peers=(peer,),
            unit="turns",
            per=1,
        )
        for peer in rivals.installed(**{"flashbax": "jax", "flashbax, no weights": "jax", "TorchRL": "torchrl"})
    ),
)
def test_replay(replay: Callable[[], None]) -> None:
    replay()
