"""A run's lanes on their way: what is computed for all of them, and the threads that do it."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import checkpoint, envs, random, samplers, storage, tree
from purerl.base import Algorithm, Env
from purerl.compiling.keeping import keep, sound
from purerl.donation import Donated, is_spent
from purerl.episodes import Episodes, averages, init_episodes, record_episodes
from purerl.rollout import discount, fuse
from purerl.training.run import Run, build, lane_name, lanes, load_run
from purerl.transforms import LARGE, compile, iterate, shapes, vmap

WORTHWHILE = 50_000  # parameters from which an update is worth several threads
PATIENCE = 1.0  # seconds that a thread at work has to come to an end


class HostState(TensorClass):
    """`TrainState` without the environments, which live outside."""

    algo: Any
    episodes: Episodes
    key: Tensor


class Lanes(TensorClass):
    """Everything that changes in a run, or in some of its lanes.

    Attributes:
        learner: `[L]` of `TrainState` or `HostState`.
        going: `[L]` bool, False from the update on after which a number of the lane's state was no longer finite.
        updates: `[L]` int64, how many were made while it was going.
    """

    learner: Any
    going: Tensor
    updates: Tensor


class Step(NamedTuple):
    """Some updates of a tile of lanes: how many, its state after them, and the last one's figures `[L]`."""

    updates: int
    lanes: Lanes
    info: TensorDict


class Program(NamedTuple):
    """What advances a tile of lanes.

    Attributes:
        advance: `advance(tile, n)`, n times one batch and one update in every lane; it yields the tile as it goes.
        threads: CPU threads of one call.
        lost: batches that were lost with a worker so far.
        environments: what `host_program` takes as `begun` to go on from here; empty where that cannot be told.
        close: gives back processes and environments.
    """

    advance: Callable[[Lanes, int], Iterator[Step]]
    threads: int = 1
    lost: Callable[[], int] = lambda: 0
    environments: Callable[[], dict[str, Any]] = dict
    close: Callable[[], None] = lambda: None


class Runner:
    """A run's lanes on their way, as tiles of equal size, each advanced in a thread of its own.

    Attributes:
        tiles: the lanes, in order, in their newest good state.
    """

    def __init__(self, program: Program, tiles: list[Lanes], update: int) -> None:
        self.tiles, self._program = tiles, program
        self._updates, self._infos = [update] * len(tiles), [TensorDict()] * len(tiles)
        self._pool = ThreadPoolExecutor(len(tiles), initializer=lambda: torch.set_num_threads(program.threads))
        self._futures: list[Future] = []
        self._writes_in_place = any(tree.donated(tree.structure(tiles[0])))

    @property
    def update(self) -> int:
        """How many updates each lane has made.

        Raises:
            RuntimeError: an error came in between: some lanes have made more than others, or their memory is still being written,
                or is written in part.
        """
        if self._writes_in_place and wait(self._futures, 0).not_done:
            raise RuntimeError("an update that writes into the lanes' memory is still at work")
        if any(is_spent(x) for tile in self.tiles for x in tree.leaves(tile)):
            raise RuntimeError("an update failed while it wrote into the lanes' memory")
        if len(set(self._updates)) > 1:
            raise RuntimeError(f"some lanes stand at update {min(self._updates)} and some at {max(self._updates)}")
        return self._updates[0]

    @property
    def lost(self) -> int:
        """Batches that were lost with a worker."""
        return self._program.lost()

    def environments(self) -> dict[str, Any]:
        """The state of environments of the outside world, as `make_runner` takes it; empty where it is not known, or not wanted."""
        return {} if wait(self._futures, 0).not_done else self._program.environments()

    def step(self, n: int) -> None:
        """Make n updates in every lane; after an error all lanes have made equally many, unless they write into memory, which
        cannot be taken back."""
        before = list(self.tiles), list(self._updates), list(self._infos)
        self._futures = [self._pool.submit(self._advance, i, n) for i in range(len(self.tiles))]
        try:
            for future in self._futures:
                future.result()
        except BaseException:
            wait(self._futures, PATIENCE)
            if len(set(self._updates)) > 1 and not self._writes_in_place:
                self.tiles, self._updates, self._infos = before
            raise

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.tiles[0].going.device.type == "cuda":
            torch.cuda.synchronize()

    def _advance(self, i: int, n: int) -> None:
        for step in self._program.advance(self.tiles[i], n):
            self.tiles[i], self._infos[i] = step.lanes, step.info
            self._updates[i] += step.updates

    def gather(self, what: Callable[[Lanes], Any]) -> Any:
        """Something of every tile, as one tree with leaves `[L, ...]`."""
        return tree.concatenate([what(tile) for tile in self.tiles])

    def figures(self) -> dict[str, np.ndarray]:
        """The lanes' records of episodes, and the last update's figures, float64 `[L]` each."""
        parts: list[dict[str, Tensor]] = []
        for tile, info in zip(self.tiles, self._infos, strict=True):
            episodes = tile.learner.episodes
            records = {f"{name}Average": x for name, x in averages(episodes).items()}
            parts.append({**records, "Diagnostics/Episodes": episodes.count, **info.to_dict()})
        return {name: np.concatenate([part[name].cpu().numpy().astype(np.float64) for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Give back threads, processes and environments; a thread that is at work for longer (it compiles) is left alone."""
        if not wait(self._futures, PATIENCE).not_done:
            self._program.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def make_runner(
    run: Run,
    algo: Algorithm,
    env: Env | envs.HostEnv,
    state: Lanes,
    update: int,
    environments: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Runner:
    """The run, about to go on from this state of all lanes, in which each has made so many updates.

    A pure environment's lanes run as tiles, at most as many as there are threads; others are one tile.

    Args:
        environments: as `Runner.environments` gave them; empty for new ones whose state can be told, None where it cannot.
        threads: of the CPU, for all tiles together; as many as torch has when omitted.
    """
    threads = threads or torch.get_num_threads()
    if not isinstance(env, Env):
        return Runner(host_program(algo, env, update, run, environments, threads), [state], update)
    n_lanes, cores = len(state.going), threads if run.device == "cpu" else 1
    n_tiles = max(n for n in range(1, cores + 1) if n_lanes % n == 0)
    size = n_lanes // n_tiles
    tiles = [tree.index(state, slice(i * size, (i + 1) * size)) for i in range(n_tiles)]
    return Runner(pure_program(algo, env, cores // n_tiles), tiles, update)


def useful_threads(algo: Algorithm, state: Any, threads: int) -> int:
    """How many of these threads an update is worth, by the size of what acts."""
    return threads if sum(x.numel() for x in tree.leaves(algo.acting(state))) > WORTHWHILE else 1


def guard(step: Callable, example: Any) -> Callable:
    """`step` on a packed state (a few large tensors cross the border of a compiled call sooner than many small ones), in which a
    lane stands still for good once any number of the algorithm's state is no longer finite: at its last good state.

    A number that is infinite from the start and stays so (a clipping range that is never reached) is none of these. Donated memory
    is neither looked at nor put back: what a stopped lane writes there, nobody reads.

    Args:
        step: `step(state, *batch) -> (state, info)`, whose state has the algorithm's as its first field.
        example: a state; it needs no data.

    Returns:
        `guarded(packed, going, updates, *batch) -> (packed, going, updates, info)`, the rest as in `Lanes`.
    """
    apart, unpack = tree.pack(example, apart=LARGE)
    leaves, are_donated = _leaves(example.algo)
    learnt = [i for i, x in enumerate(leaves) if x.is_floating_point() and not are_donated[i]]
    large, small = [i for i in learnt if i in apart], [leaves[i] for i in learnt if i not in apart]
    counts = {dtype: sum(x.numel() for x in small if x.dtype == dtype) for dtype in {x.dtype for x in small}}

    def guarded(packed: dict[Any, Any], going: Tensor, updates: Tensor, *batch: Any) -> tuple:
        state, info = step(tree.copy(unpack(packed)), *batch)  # a loop takes no two views of one tensor
        new = tree.pack(state, apart=LARGE)[0]
        memory = {Donated: new.pop(Donated)} if Donated in new else {}
        pairs = [(new[dtype][:n], packed[dtype][:n]) for dtype, n in counts.items() if n]  # the algorithm's are packed first
        pairs += [(new[i], packed[i]) for i in large]
        looked_at = [sound(after, before) for after, before in pairs]
        going = going & torch.stack(looked_at).all() if looked_at else going
        kept = {name: keep(going, x, packed[name]) for name, x in new.items()}
        return {**kept, **memory}, going, updates + going, info

    return guarded


def _leaves(state: Any) -> tuple[list[Tensor], list[bool]]:
    leaves, structure = tree.flatten(state)
    return leaves, tree.donated(structure)


def pure_program(algo: Algorithm, env: Env, threads: int) -> Program:
    """Rollout and update fused, by up to so many threads."""
    init, step = fuse(algo, env)
    example = shapes(init, random.key(0))
    guarded, threads = vmap(guard(step, example)), useful_threads(algo, example.algo, threads)

    def one(state: tuple[dict, Tensor, Tensor]) -> tuple[tuple[dict, Tensor, Tensor], TensorDict]:
        packed, going, updates, info = guarded(*state)
        return (packed, going, updates), info

    many = iterate(one, threads)

    def advance(tile: Lanes, n: int) -> Iterator[Step]:
        packed, unpack = tree.pack(tile.learner, axes=1, apart=LARGE)
        (packed, going, updates), info = many((packed, tile.going, tile.updates), n)
        yield Step(n, Lanes(learner=unpack(packed), going=going, updates=updates), info)

    return Program(advance, threads)


def host_program(
    algo: Algorithm, env: envs.HostEnv, start: int, run: Run, begun: Mapping[str, Any] | None = None, threads: int = 1
) -> Program:
    """Collect from outside, then update, by up to so many threads; about to make update number `start`.

    Args:
        begun: `opened`, the update before which the environments were opened, and `environments`, their state (`Feed.save`); empty
            for new ones, None where it cannot be told.
    """

    def learn(state: HostState, batch: Any) -> tuple[HostState, TensorDict]:
        algo_state, info = algo.update(state.algo, batch)
        return HostState(algo=algo_state, episodes=record_episodes(state.episodes, batch), key=state.key), info

    example = shapes(make_init(algo, env, run), random.key(0))
    threads = useful_threads(algo, example.algo, threads)
    compiled = compile(vmap(guard(learn, example)), threads)
    feed: samplers.Feed | None = None
    between = True  # two batches
    opened = begun["opened"] if begun else start

    def open_feed(key: Tensor) -> samplers.Feed:
        keys = torch.vmap(lambda key: random.fold_in(key, opened))(key)
        return samplers.make(env, algo, algo.n_envs, algo.n_steps, keys, **dataclasses.asdict(run.collecting))

    def begin(key: Tensor) -> samplers.Feed:
        nonlocal opened
        found = open_feed(key)
        try:
            if begun:
                found.restore(begun["environments"])
            return found
        except samplers.EnvError as error:
            warnings.warn(f"{run.env}: {error}; new episodes begin", stacklevel=2)
            opened = start
            return open_feed(key)

    def advance(tile: Lanes, n: int) -> Iterator[Step]:
        nonlocal feed, between
        state, going, updates = tile.learner, tile.going, tile.updates
        if feed is None:
            feed = begin(state.key)
            feed.publish(state.algo)
        for _ in range(n):
            packed, unpack = tree.pack(state, axes=1, apart=LARGE)
            between = False
            batch = next(feed)
            packed, going, updates, info = compiled(packed, going, updates, batch)
            state = unpack(packed)
            yield Step(1, Lanes(learner=state, going=going, updates=updates), info)
            feed.publish(state.algo)
            between = True

    def environments() -> dict[str, Any]:
        if begun is None or not between:
            return {}
        if feed is None:
            return dict(begun)
        try:
            return {"opened": opened, "environments": feed.save()}
        except (samplers.EnvError, samplers.WorkerError):
            return {}

    return Program(advance, threads, lambda: feed.lost if feed else 0, environments, lambda: feed.close() if feed else None)


def make_init(algo: Algorithm, env: Env | envs.HostEnv, run: Run) -> Callable[..., Any]:
    """`init(key, hyper) -> learner` of one lane; `hyper` maps the numbers swept to their values."""
    if isinstance(env, Env):
        return fuse(algo, env)[0]

    def init(key: Tensor, hyper: Mapping[str, Tensor] = {}) -> HostState:
        key, algo_key = random.split(key)
        episodes = init_episodes(algo.n_envs, discount(algo, hyper), run.collecting.infos, key.device)
        return HostState(algo=algo.init(algo_key, hyper), episodes=episodes, key=key)

    return init


def initial_state(run: Run, algo: Algorithm, env: Env | envs.HostEnv) -> Lanes:
    """All lanes before their first step, each with its seed's key and its variant's numbers; their memory lies where it is to, and
    holds the replay of another run if they begin with that."""
    keys = torch.stack([random.key(seed) for _, seed in lanes(run)]).to(run.device)
    hyper = {name: torch.tensor([float(variant[name]) for variant, _ in lanes(run)], device=run.device) for name in run.sweep}
    state = placed(run, lambda: _before_all(run, algo, env, keys, hyper))
    if run.replay_from is not None:
        _read_replay(Path(run.replay_from), algo, state)
    return state


def _read_replay(folder: Path, algo: Algorithm, state: Lanes) -> None:
    """Read another run's replay into the lanes' own, where it lies: of each of its lanes into one, or of its only one into all.

    Raises:
        ValueError: one of its lanes has stopped.
    """
    other = load_run(folder)
    theirs, env = build(other)
    source = template(other, theirs, env)
    going = load_state(folder, other, theirs, env, part=lambda state: state.going)[0].going.tolist()
    stopped = [lane_name(*lane) for lane, goes_on in zip(lanes(other), going, strict=True) if not goes_on]
    if stopped:
        raise ValueError(
            f"replay_from = {folder}: a number that was not finite has stopped {', '.join(stopped)}; its replay holds it"
        )
    assert algo.replay is not None
    assert theirs.replay is not None
    own, wanted, n = (
        tree.leaves(algo.replay(state.learner.algo)),
        tree.leaves(theirs.replay(source.learner.algo)),
        len(source.going),
    )
    places = {id(x): place[:n] for x, place in zip(wanted, own, strict=True)}
    leaves, structure = tree.flatten(source)
    into = tree.unflatten(structure, [places.get(id(x), x) for x in leaves])
    checkpoint.newest(folder / "checkpoints", lambda path: checkpoint.load_into(path, into))
    for x in own if n == 1 else ():
        x[1:] = x[:1]


def _before_all(run: Run, algo: Algorithm, env: Env | envs.HostEnv, keys: Tensor, hyper: dict[str, Tensor]) -> Lanes:
    going = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    learner = vmap(make_init(algo, env, run))(keys, hyper)
    return Lanes(learner=learner, going=going, updates=torch.zeros_like(going, dtype=torch.int64))


def load_state(
    out: Path, run: Run, algo: Algorithm, env: Env | envs.HostEnv, part: Callable[[Lanes], Any] = lambda lanes: lanes
) -> tuple[Lanes, dict[str, Any]]:
    """The newest whole checkpoint of a run: the state of all lanes, and its meta.

    Args:
        part: picks what is needed of it; the rest may be left without data.

    Returns:
        The lanes, `without_memory` if the run does not save it, and the meta.

    Raises:
        CheckpointError: there is none.
    """
    return checkpoint.load_newest(out / "checkpoints", template(run, algo, env), run.device, part)


def resumed_state(out: Path, run: Run, algo: Algorithm, env: Env | envs.HostEnv) -> tuple[Lanes, dict[str, Any]]:
    """As `load_state`, ready to go on: with its memory, empty where it was not saved, where the run keeps it."""
    if not run.checkpoint_replay:
        found, meta = load_state(out, run, algo, env)
        return placed(run, lambda: with_empty_memory(algo, found)), meta
    if run.replay_folder is None:
        return load_state(out, run, algo, env)
    state = placed(run, lambda: template(run, algo, env))
    return state, checkpoint.newest(out / "checkpoints", lambda path: checkpoint.load_into(path, state))


def template(run: Run, algo: Algorithm, env: Env | envs.HostEnv) -> Lanes:
    """What a checkpoint of the run holds, as tensors without data."""
    n = len(lanes(run))
    keys, hyper = torch.zeros(n, 2, dtype=torch.int32), {name: torch.zeros(n) for name in run.sweep}
    found = shapes(lambda keys, hyper: _before_all(run, algo, env, keys, hyper), keys, hyper)
    return found if run.checkpoint_replay else without_memory(found)


def placed(run: Run, make: Callable[[], Lanes]) -> Lanes:
    """The lanes that `make()` gives, their memory where the run keeps it."""
    return make() if run.replay_folder is None else storage.mapped(make, Path(run.replay_folder))


def without_memory(lanes: Lanes) -> Lanes:
    """The lanes with nothing in the algorithm's donated memory."""
    return _with_algo(lanes, tree.without_memory(lanes.learner.algo))


def with_empty_memory(algo: Algorithm, lanes: Lanes) -> Lanes:
    """Lanes `without_memory` as their algorithm goes on with them, all of whose memory is gone."""
    return _with_algo(lanes, vmap(algo.forget)(lanes.learner.algo)) if algo.forget else lanes


def _with_algo(lanes: Lanes, state: Any) -> Lanes:
    return tree.replace(lanes, learner=tree.replace(lanes.learner, algo=state))
