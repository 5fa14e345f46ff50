"""Samplers against Stable-Baselines3's SubprocVecEnv and Gymnasium's AsyncVectorEnv, the bare environments and the bare policy."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from bench.contest import Contest, Side, Stretch, by_turns, repeated
from bench.simulators import Timed, pong

from purerl import PPOConfig, compile, envs, make_ppo, random, samplers
from purerl.samplers import arrangements
from purerl.samplers.acting import make_act
from purerl.samplers.feeds import set_up
from purerl.samplers.fragments import RolloutBuffer

N_ENVS = 8
BARE, BARE_THREADS = ("stepping", "inference", "inference, one core", "both"), ("stepping, threads", "both, threads")


class Workload(NamedTuple):
    name: str
    title: str
    env: envs.HostEnv
    make_one: Callable[[], gym.Env]
    n_steps: int
    feeds: Mapping[str, Callable[..., samplers.Feed]]
    hidden: tuple[int, ...] = (64, 64)
    asleep: bool = False

    @property
    def image(self) -> bool:
        return len(self.env.spec.observation_space.shape) == 3

    @property
    def config(self) -> PPOConfig:
        return PPOConfig(n_envs=N_ENVS, n_steps=self.n_steps, shared_torso=self.image, hidden=self.hidden)


def workloads() -> list[Workload]:
    two, many = {"n_workers": 2}, {"n_workers": N_ENVS}
    python = {
        "serial": samplers.serial,
        "parallel": partial(samplers.parallel, **two),
        "central": partial(samplers.central, **two),
        "alternating": partial(samplers.alternating, **two),
        "alternating, no overlap": partial(samplers.alternating, overlap=False, **two),
    }
    eight = {
        "parallel, 8 workers": partial(samplers.parallel, **many),
        "central, 8 workers": partial(samplers.central, **many),
        "alternating, 8 workers": partial(samplers.alternating, **many),
    }
    native = {"native": samplers.native, "native, async of 4": partial(samplers.native, batch_size=4)}
    asleep_image = partial(Timed, 1e-3, True, image=True)
    busy, asleep, cheetah = partial(Timed, 20e-6, False), partial(Timed, 1e-3, True), partial(gym.make, "HalfCheetah-v5")
    return [
        Workload("busy", "(a) an environment of 20 us", envs.host(busy), busy, 128, python),
        Workload("sleep", "(b) an environment that sleeps 1 ms", envs.host(asleep), asleep, 32, python | eight, asleep=True),
        Workload("sleep-wide", "(b) the same, MLP 1024x1024", envs.host(asleep), asleep, 32, eight, (1024, 1024), True),
        Workload("sleep-image", "(b) the same, Nature CNN", envs.host(asleep_image), asleep_image, 32, eight, asleep=True),
        Workload("cheetah", "(c) HalfCheetah-v5", envs.make("HalfCheetah-v5"), cheetah, 128, python),
        Workload("pong", "(d) ALE/Pong-v5, Nature CNN", envs.make("ALE/Pong-v5"), pong, 32, python | native),
    ]


def stable_baselines(work: Workload, closing: ExitStack) -> Callable[[], object]:
    """Stable-Baselines3's PPO collecting its rollouts from a SubprocVecEnv."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import SubprocVecEnv

    vec = SubprocVecEnv([work.make_one] * N_ENVS, start_method="forkserver")
    closing.callback(vec.close)
    settings: dict[str, Any] = {} if work.image else {"policy_kwargs": {"net_arch": list(work.hidden)}}
    size = N_ENVS * work.n_steps
    model = PPO("CnnPolicy" if work.image else "MlpPolicy", vec, n_steps=work.n_steps, batch_size=size, device="cpu", **settings)
    _, callback = model._setup_learn(1 << 30)
    return lambda: model.collect_rollouts(model.env, callback, model.rollout_buffer, work.n_steps)


def async_vector(work: Workload, closing: ExitStack) -> Callable[[], object]:
    """Gymnasium's AsyncVectorEnv in a loop as CleanRL writes it, which acts with eager PyTorch."""
    vec = gym.vector.AsyncVectorEnv([work.make_one] * N_ENVS, shared_memory=True, context="forkserver")
    closing.callback(vec.close)
    shape = work.env.spec.observation_space.shape
    if work.image:
        layers: list[Any] = [torch.nn.Conv2d(4, 32, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 4, 2), torch.nn.ReLU()]
        layers += [torch.nn.Conv2d(64, 64, 3, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(3136, 512), torch.nn.ReLU()]
        layers.append(torch.nn.Linear(512, 6))  # as many actions as needed are looked at
    else:
        a, b = work.hidden
        layers = [torch.nn.Linear(shape[0], a), torch.nn.Tanh(), torch.nn.Linear(a, b), torch.nn.Tanh(), torch.nn.Linear(b, 6)]
    net, discrete = torch.nn.Sequential(*layers), isinstance(work.env.spec.action_space, gym.spaces.Discrete)
    n_actions = work.env.spec.action_space.n if discrete else 6
    obs = torch.zeros((work.n_steps, N_ENVS, *shape), dtype=torch.uint8 if work.image else torch.float32)
    log_probs, rewards, dones = (torch.zeros(work.n_steps, N_ENVS) for _ in range(3))
    seen, _ = vec.reset(seed=0)

    @torch.no_grad()
    def collect() -> None:
        nonlocal seen
        for t in range(work.n_steps):
            obs[t] = torch.from_numpy(seen)
            out = net(obs[t].float() / 255.0 if work.image else obs[t])
            if discrete:
                dist: Any = torch.distributions.Categorical(logits=out[:, :n_actions])
            else:
                dist = torch.distributions.Normal(out, 1.0)
            action = dist.sample()
            log_probs[t] = dist.log_prob(action).reshape(N_ENVS, -1).sum(-1)
            seen, reward, terminated, truncated, _ = vec.step(action.numpy() if discrete else action.clamp(-1, 1).numpy())
            rewards[t], dones[t] = torch.from_numpy(reward), torch.from_numpy(terminated | truncated)

    return collect


PEERS = {"SB3 SubprocVecEnv": stable_baselines, "Gymnasium AsyncVectorEnv": async_vector}


def bare(work: Workload, closing: ExitStack) -> dict[str, Callable[[int], object]]:
    """A step of all environments without a sampler: bare, one after the other in this process, or on the threads of a vector
    environment; the compiled policy, as a feed in this process acts with it, or on one core; and both by turns, which leave each
    other a colder cache.
    """
    algo = make_ppo(work.env.spec, work.config)
    setup = set_up(work.env, algo, N_ENVS, work.n_steps, random.key(0))
    buffer = RolloutBuffer(setup.plan)
    action = work.env.spec.action_space.sample()
    (act,), _ = arrangements._actors(setup, buffer, [range(N_ENVS)], closing)
    alone, _ = make_act(algo, buffer, range(N_ENVS))

    def step_one(env: gym.Env) -> None:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    def steps(threads: int) -> Callable[[int], object]:
        if work.env.make_vec is None:
            singles = [work.env.make() for _ in range(N_ENVS)]  # type: ignore[misc]
            for env in singles:
                env.reset(seed=0)
                closing.callback(env.close)
            return lambda t: [step_one(env) for env in singles]
        vec = work.env.make_vec(N_ENVS, threads)
        closing.callback(vec.close)
        vec.reset(seed=0)
        actions = np.full(N_ENVS, action)
        return lambda t: vec.step(actions)

    one, several = steps(1), steps(arrangements.cores())
    found = dict(zip(BARE, (one, act, alone, lambda t: (act(t), one(t))), strict=True))
    return found | dict(zip(BARE_THREADS, (several, lambda t: (act(t), several(t))), strict=True))


@contextmanager
def collecting(work: Workload, rounds: int) -> Iterator[Mapping[str, Side]]:
    """Who collects, a fragment each."""
    algo = make_ppo(work.env.spec, work.config)
    state, units = algo.init(random.key(0)), N_ENVS * work.n_steps
    with ExitStack() as closing:
        feeds = {}
        for name, open_feed in work.feeds.items():
            feeds[name] = closing.enter_context(open_feed(work.env, algo, N_ENVS, work.n_steps, random.key(0)))
            feeds[name].publish(state)
        collectors = {name: feed.__next__ for name, feed in feeds.items()}
        collectors |= {name: peer(work, closing) for name, peer in PEERS.items()}
        floors = {name: lambda f=f: [f(t) for t in range(work.n_steps)] for name, f in bare(work, closing).items()}
        yield {name: repeated(f, 1, units) for name, f in (collectors | floors).items()}


def limits(work: Workload) -> dict[str, Callable[[Mapping[str, float]], float]]:
    """What no feed can be faster than, from the bare parts of its work."""
    cores, at_once = arrangements.cores(), N_ENVS if work.asleep else arrangements.cores()

    def alternating(stepping: float, lone: float) -> float:
        return max(stepping / 2, lone, (stepping + lone) / (2 + cores if work.asleep else cores))

    found = {
        "serial": lambda s: s["both"],
        "parallel": lambda s: (s["stepping"] + s["inference, one core"]) / 2,
        "parallel, 8 workers": lambda s: s["stepping"] / at_once + s["inference, one core"] / cores,
        "central": lambda s: s["stepping"] / 2 + s["inference"],
        "central, 8 workers": lambda s: s["stepping"] / at_once + s["inference"],
        "alternating": lambda s: alternating(s["stepping"], s["inference, one core"]),
        "alternating, 8 workers": lambda s: max(s["stepping"] / at_once + s["inference, one core"] / 2, s["inference, one core"]),
        "native": lambda s: s["both, threads"],
    }
    return {name: limit for name, limit in found.items() if name in work.feeds}


@contextmanager
def overlap(rounds: int) -> Iterator[Mapping[str, Side]]:
    """Loops that learn from each batch, with a feed that waits and with one that collects meanwhile, and their halves."""
    env = envs.make("HalfCheetah-v5")
    algo = make_ppo(env.spec, PPOConfig(n_envs=N_ENVS, n_steps=128, epochs=10, n_minibatches=8))
    start, update, n = algo.init(random.key(0)), compile(algo.update), 10

    def loop(open_feed: Callable[..., samplers.Feed], learn: Callable[[Any, Any], tuple[Any, Any]]) -> Stretch:
        state = start
        with open_feed(env, algo, N_ENVS, 128, random.key(0), n_workers=1) as feed:
            feed.publish(state)
            for i, batch in enumerate(feed):
                if i == 2:
                    begun = time.perf_counter()
                if i == 2 + n:
                    return Stretch(n * N_ENVS * 128, time.perf_counter() - begun)
                state, _ = learn(state, batch)
                feed.publish(state)
        raise AssertionError

    with samplers.serial(env, algo, N_ENVS, 128, random.key(0)) as feed:
        feed.publish(start)
        batch = next(feed)
    yield {
        "waiting feed": lambda: loop(samplers.parallel, update),
        "buffered": lambda: loop(samplers.buffered, update),
        "collecting": lambda: loop(samplers.parallel, lambda state, batch: (state, None)),
        "learning": repeated(lambda: update(start, batch), n, N_ENVS * 128),
    }


def contest(work: Workload) -> Contest:
    return Contest(
        name=work.name,
        title=f"{work.title}: {N_ENVS} environments",
        sides=(*work.feeds, *PEERS, *BARE, *(BARE_THREADS if work.env.make_vec else ())),
        open=partial(collecting, work),
        peers=tuple(PEERS),
        floors=limits(work),
    )


@by_turns(
    *map(contest, workloads()),
    Contest(
        name="buffered",
        title="PPO HalfCheetah-v5, one worker: collecting while learning",
        sides=("waiting feed", "buffered", "collecting", "learning"),
        open=overlap,
        peers=("waiting feed",),
        floors={"buffered": lambda seconds: max(seconds["collecting"], seconds["learning"])},
        rounds=3,
    ),
)
def test_samplers(replay: Callable[[], None]) -> None:
    replay()
