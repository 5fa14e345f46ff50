"""Samplers against Stable-Baselines3's SubprocVecEnv and Gymnasium's AsyncVectorEnv, and against the bare environments and the bare
policy, in one run: `python examples/bench_samplers.py [--scale X] [WORKLOAD...]`.

All contenders collect by turns, a fragment each, over several rounds; a figure is the median of its rounds.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from purerl import PPOConfig, compile, envs, make_ppo, random, samplers
from purerl.samplers import arrangements
from purerl.samplers.acting import make_act
from purerl.samplers.feeds import set_up
from purerl.samplers.fragments import Rows

N_ENVS = 8


class Timed(gym.Env):
    """Steps that cost so many seconds, at work or asleep, and show a vector or an image; episodes of 200 steps."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, seconds: float, asleep: bool, image: bool = False) -> None:
        vector, picture = gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.observation_space = picture if image else vector
        self.seconds, self.asleep = seconds, asleep
        self.obs = np.zeros(self.observation_space.shape, self.observation_space.dtype)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.n = 0
        return self.obs, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.asleep:
            time.sleep(self.seconds)
        else:
            until = time.perf_counter() + self.seconds
            while time.perf_counter() < until:
                pass
        self.n += 1
        return self.obs, 1.0, self.n == 200, False, {}


def pong(frame_skip: int = 4) -> gym.Env:
    """Pong as wrappers of single environments make it."""
    import ale_py

    gym.register_envs(ale_py)
    env = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    env = gym.wrappers.AtariPreprocessing(env, frame_skip=frame_skip, terminal_on_life_loss=True)
    return gym.wrappers.FrameStackObservation(env, 4)


class Workload(NamedTuple):
    title: str
    env: envs.HostEnv
    make_one: Callable[[], gym.Env]
    n_steps: int
    feeds: dict[str, Callable[..., samplers.Feed]]
    hidden: tuple[int, ...] = (64, 64)
    asleep: bool = False


def workloads() -> dict[str, Workload]:
    two = {"n_workers": 2}
    python = {
        "serial": samplers.serial,
        "parallel": partial(samplers.parallel, **two),
        "central": partial(samplers.central, **two),
        "alternating": partial(samplers.alternating, **two),
        "alternating, no overlap": partial(samplers.alternating, overlap=False, **two),
    }
    many = {"n_workers": N_ENVS}
    sleeping = {
        **python,
        "parallel, 8 workers": partial(samplers.parallel, **many),
        "central, 8 workers": partial(samplers.central, **many),
        "alternating, 8 workers": partial(samplers.alternating, **many),
    }
    eight = {name: f for name, f in sleeping.items() if name not in python}
    asleep_image = partial(Timed, 1e-3, True, image=True)
    busy, asleep, cheetah = partial(Timed, 20e-6, False), partial(Timed, 1e-3, True), partial(gym.make, "HalfCheetah-v5")
    game = {**python, "native": samplers.native, "native, async of 4": partial(samplers.native, batch_size=4)}
    return {
        "busy": Workload("(a) an environment of 20 us", envs.host(busy), busy, 128, python),
        "sleep": Workload("(b) an environment that sleeps 1 ms", envs.host(asleep), asleep, 32, sleeping, asleep=True),
        "sleep-wide": Workload("(b) the same, MLP 1024x1024", envs.host(asleep), asleep, 32, eight, (1024, 1024), True),
        "sleep-image": Workload("(b) the same, Nature CNN", envs.host(asleep_image), asleep_image, 32, eight, asleep=True),
        "cheetah": Workload("(c) HalfCheetah-v5", envs.make("HalfCheetah-v5"), cheetah, 128, python),
        "pong": Workload("(d) ALE/Pong-v5, Nature CNN", envs.make("ALE/Pong-v5"), pong, 32, game),
    }


def sb3(work: Workload) -> Iterator[Callable[[], None]]:
    """Stable-Baselines3's PPO collecting its rollouts from a SubprocVecEnv."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import SubprocVecEnv

    image = len(work.env.spec.observation_space.shape) == 3
    vec = SubprocVecEnv([work.make_one] * N_ENVS, start_method="forkserver")
    settings: dict[str, Any] = {} if image else {"policy_kwargs": {"net_arch": list(work.hidden)}}
    size = N_ENVS * work.n_steps
    model = PPO("CnnPolicy" if image else "MlpPolicy", vec, n_steps=work.n_steps, batch_size=size, device="cpu", **settings)
    _, callback = model._setup_learn(1 << 30)
    yield lambda: model.collect_rollouts(model.env, callback, model.rollout_buffer, work.n_steps)
    vec.close()


def async_vector(work: Workload) -> Iterator[Callable[[], None]]:
    """Gymnasium's AsyncVectorEnv in a loop as CleanRL writes it, which acts with eager PyTorch."""
    vec = gym.vector.AsyncVectorEnv([work.make_one] * N_ENVS, shared_memory=True, context="forkserver")
    space = work.env.spec.observation_space
    if len(space.shape) == 3:
        layers: list[Any] = [torch.nn.Conv2d(4, 32, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 4, 2), torch.nn.ReLU()]
        layers += [torch.nn.Conv2d(64, 64, 3, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(3136, 512), torch.nn.ReLU()]
        layers.append(torch.nn.Linear(512, 6))  # as many actions as needed are looked at
    else:
        n = space.shape[0]
        a, b = work.hidden
        layers = [torch.nn.Linear(n, a), torch.nn.Tanh(), torch.nn.Linear(a, b), torch.nn.Tanh(), torch.nn.Linear(b, 6)]
    net, discrete = torch.nn.Sequential(*layers), isinstance(work.env.spec.action_space, gym.spaces.Discrete)
    n_actions = work.env.spec.action_space.n if discrete else 6
    obs = torch.zeros((work.n_steps, N_ENVS, *space.shape), dtype=torch.uint8 if len(space.shape) == 3 else torch.float32)
    log_probs, rewards, dones = (torch.zeros(work.n_steps, N_ENVS) for _ in range(3))
    seen, _ = vec.reset(seed=0)

    @torch.no_grad()
    def collect() -> None:
        nonlocal seen
        for t in range(work.n_steps):
            obs[t] = torch.from_numpy(seen)
            out = net(obs[t].float() / 255.0 if len(space.shape) == 3 else obs[t])
            if discrete:
                dist: Any = torch.distributions.Categorical(logits=out[:, :n_actions])
            else:
                dist = torch.distributions.Normal(out, 1.0)
            action = dist.sample()
            log_probs[t] = dist.log_prob(action).reshape(N_ENVS, -1).sum(-1)
            seen, reward, terminated, truncated, _ = vec.step(action.numpy() if discrete else action.clamp(-1, 1).numpy())
            rewards[t], dones[t] = torch.from_numpy(reward), torch.from_numpy(terminated | truncated)

    yield collect
    vec.close()


class Floors(NamedTuple):
    """Seconds of a step of all environments, without a sampler.

    Attributes:
        stepping: bare, one after the other in this process.
        inference: bare compiled inference, as a feed in this process does it; `lone`: on one core.
        both: stepping and inference by turns, which leave each other a colder cache.
        raw, raw_both: of a vector environment with threads of its own, the same.
    """

    stepping: float
    inference: float
    lone: float
    both: float
    raw: float = float("nan")
    raw_both: float = float("nan")


def floors(work: Workload) -> Floors:
    algo = make_ppo(work.env.spec, config_of(work))
    setup = set_up(work.env, algo, N_ENVS, work.n_steps, random.key(0))
    rows = Rows(setup.plan)
    action = work.env.spec.action_space.sample()

    def per_step(f: Callable[[int], object]) -> float:
        def run() -> None:
            for t in range(work.n_steps):
                f(t)

        return _median(run, 9) / work.n_steps

    def steps(threads: int) -> Callable[[int], object]:
        if work.env.make_vec is None:
            singles = [work.env.make() for _ in range(N_ENVS)]  # type: ignore[misc]
            for env in singles:
                env.reset(seed=0)
            return lambda t: [step_one(env) for env in singles]
        vec = work.env.make_vec(N_ENVS, threads)
        vec.reset(seed=0)
        actions = np.full(N_ENVS, action)
        return lambda t: vec.step(actions)

    def step_one(env: gym.Env) -> None:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    with ExitStack() as stack:
        (act,), _ = arrangements._actors(setup, rows, [range(N_ENVS)], stack)
        alone, _ = make_act(algo, rows, range(N_ENVS))

        def by_turns(step: Callable[[int], object]) -> Callable[[int], object]:
            return lambda t: (act(t), step(t))

        one = steps(1)
        found = Floors(per_step(one), per_step(act), per_step(alone), per_step(by_turns(one)))
        if work.env.make_vec is None:
            return found
        several = steps(arrangements.cores())
        return found._replace(raw=per_step(several), raw_both=per_step(by_turns(several)))


def config_of(work: Workload) -> PPOConfig:
    image = len(work.env.spec.observation_space.shape) == 3
    return PPOConfig(n_envs=N_ENVS, n_steps=work.n_steps, shared_torso=image, hidden=work.hidden)


def _median(f: Callable[[], object], rounds: int) -> float:
    f()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(work: Workload, rounds: int) -> None:
    algo = make_ppo(work.env.spec, config_of(work))
    state = algo.init(random.key(0))
    with ExitStack() as stack:
        contenders: dict[str, Callable[[], object]] = {}
        for name, open_feed in work.feeds.items():
            feed = stack.enter_context(open_feed(work.env, algo, N_ENVS, work.n_steps, random.key(0)))
            feed.publish(state)
            contenders[name] = feed.__next__
        peers = {"SB3 SubprocVecEnv": sb3(work), "Gymnasium AsyncVectorEnv": async_vector(work)}
        for name, peer in peers.items():
            contenders[name] = next(peer)
            stack.callback(lambda peer=peer: next(peer, None))
        for f in contenders.values():
            f()
        gc.collect()
        gc.freeze()  # as `purerl train` does once everything is compiled
        times: dict[str, list[float]] = {name: [] for name in contenders}
        floor = floors(work)
        for _ in range(rounds):
            for name, f in contenders.items():
                start = time.perf_counter()
                f()
                times[name].append(time.perf_counter() - start)
        seconds = {name: statistics.median(x) / work.n_steps for name, x in times.items()}
    better = min(seconds[name] for name in peers)
    cores, at_once = arrangements.cores(), N_ENVS if work.asleep else arrangements.cores()
    parts = (
        f"stepping {floor.stepping * 1e6:,.0f} us, inference {floor.inference * 1e6:,.0f} us, by turns {floor.both * 1e6:,.0f} us"
    )
    print(f"\n{work.title}: {N_ENVS} environments, a bare step of all: {parts}")
    if not np.isnan(floor.raw):
        print(f"ALE alone on {cores} threads: {floor.raw * 1e6:,.0f} us = {N_ENVS / floor.raw:,.0f} steps/s")
    print(f"{'':28}{'steps/s':>10}{'of the better peer':>20}{'a step':>12}{'over its floor':>16}")
    limits = {
        "serial": floor.both,
        "parallel": (floor.stepping + floor.lone) / 2,
        "parallel, 8 workers": floor.stepping / at_once + floor.lone / cores,
        "central": floor.stepping / 2 + floor.inference,
        "central, 8 workers": floor.stepping / at_once + floor.inference,
        "alternating": max(floor.stepping / 2, floor.lone, (floor.stepping + floor.lone) / (2 + cores if work.asleep else cores)),
        "alternating, 8 workers": max(floor.stepping / at_once + floor.lone / 2, floor.lone),
        "native": floor.raw_both,
    }
    for name, each in seconds.items():
        own = f"{each / limits[name] - 1:>15.0%}" if name in limits else ""
        print(f"{name:28}{N_ENVS / each:>10,.0f}{better / each:>19.2f}x{each * 1e6:>9,.0f} us{own}", flush=True)


def overlap(rounds: int) -> None:
    """A loop that learns from each batch, with a feed that waits and with one that collects meanwhile."""
    work = workloads()["cheetah"]
    algo = make_ppo(work.env.spec, PPOConfig(n_envs=N_ENVS, n_steps=128, epochs=10, n_minibatches=8))
    start_state, update = algo.init(random.key(0)), compile(algo.update)

    def loop(open_feed: Callable[..., samplers.Feed]) -> tuple[float, float]:
        state, learning = start_state, []
        with open_feed(work.env, algo, N_ENVS, 128, random.key(0)) as feed:
            feed.publish(state)
            for i, batch in enumerate(feed):
                if i == 2:
                    start = time.perf_counter()
                if i == 2 + rounds:
                    return (time.perf_counter() - start) / rounds, statistics.median(learning)
                begun = time.perf_counter()
                state, _ = update(state, batch)
                learning.append(time.perf_counter() - begun)
                feed.publish(state)
        raise AssertionError

    one = {"n_workers": 1}
    waiting, learning = loop(partial(samplers.parallel, **one))
    meanwhile, _ = loop(partial(samplers.buffered, **one))
    collecting = waiting - learning
    print(f"\nPPO HalfCheetah-v5, one worker: collecting {collecting * 1e3:.0f} ms, learning {learning * 1e3:.0f} ms a batch")
    limit = max(collecting, learning)
    times = f"waiting feed {waiting * 1e3:.0f} ms, buffered {meanwhile * 1e3:.0f} ms"
    print(f"{times}, {meanwhile / limit - 1:.0%} over the larger of the two")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="busy, sleep, sleep-wide, sleep-image, cheetah, pong, overlap")
    parser.add_argument("--scale", type=float, default=1.0, help="length of the runs")
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster for the peers too, whose environments need the other core
    rounds = max(3, int(15 * args.scale))
    for name, work in workloads().items():
        if not args.names or name in args.names:
            measure(work, rounds)
    if not args.names or "overlap" in args.names:
        overlap(rounds)


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
