"""What a GPU does: `python examples/bench_gpu.py`. First that it computes the same, then how fast.

Without a GPU it runs on the CPU with small sizes, so that it is known to work before a GPU is at hand. Only PPO is compiled then:
every program takes a minute there.
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorClass, TensorDict
from torch import nn

from purerl import (
    Donated,
    EnvSpec,
    Inputs,
    PPOConfig,
    algos,
    compile,
    envs,
    fuse,
    iterate,
    make_ppo,
    nets,
    random,
    samplers,
    training,
    tree,
    vmap,
    write,
)
from purerl.evaluate import evaluate
from purerl.logs import RATE, read_rows
from purerl.transforms import repeat

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
START = time.perf_counter()
ON_GPU = DEVICE == "cuda"
STEPS = 512_000 if ON_GPU else 5 * 512  # of a lane
TURNS, REPEATS = (10, 3) if ON_GPU else (1, 1)  # of what is replayed, and of a measurement


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:5.0f} s] {text}", flush=True)


def program(f: Callable, threads: int = 1) -> Callable:
    """`compile` on a GPU."""
    return compile(f, threads) if ON_GPU else f


def turns(step: Callable) -> Callable:
    """`iterate` on a GPU."""
    return iterate(step) if ON_GPU else lambda state, n: repeat(step, state, torch.tensor(n))


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def seconds(f: Callable[[], object]) -> float:
    """Of one call, the median of some after one that is not counted, in which it may compile."""
    times = []
    for _ in range(1 + REPEATS):
        wait()
        start = time.perf_counter()
        f()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def draws() -> None:
    def found(key: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "bits": random.bits(key, (1001,)),
            "split": random.split(key, 5),
            "uniform": random.uniform(key, (1001,)),
            "randint": random.randint(key, (1001,), -3, 9),
            "permutation": random.permutation(key, 1001),
            "bernoulli": random.bernoulli(key, 0.3, (1001,)),
            "normal": random.normal(key, (1001,)),
        }

    here, there = found(random.key(7)), random.key(7, DEVICE)
    eager, compiled = found(there), program(found)(there)
    for name, x in here.items():
        exact = name != "normal"  # a logarithm and a cosine of another library
        torch.testing.assert_close(eager[name].cpu(), x, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
        torch.testing.assert_close(compiled[name].cpu(), x, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
    say(f"{', '.join(here)}: as on the CPU, bit for bit but the last, eager and compiled")


def one_update() -> None:
    env = envs.make("CartPole-v1")
    algo = make_ppo(env.spec, PPOConfig(total_steps=STEPS))
    init, step = fuse(algo, env)
    state = vmap(init)(random.split(random.key(0), 3))
    here, _ = vmap(step)(state)
    there, _ = vmap(step)(tree.map(lambda x: x.to(DEVICE), state))
    for a, b in zip(tree.leaves(here.algo.params), tree.leaves(there.algo.params), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-5)
    say("PPO's parameters after one update: as on the CPU, to 1e-5")


class Ring(TensorClass):
    memory: Donated
    cursor: torch.Tensor


def donation() -> None:
    """Memory on the device is written where it is, by a call and by a recorded one."""

    def add(ring: Ring) -> tuple[Ring, torch.Tensor]:
        rows = (ring.cursor + torch.arange(4, device=ring.cursor.device)) % 1000
        new = ring.cursor + torch.arange(12.0, device=ring.cursor.device).reshape(4, 3)
        return Ring(memory=write(ring.memory, rows, {"x": new}), cursor=ring.cursor + 4), new.sum()

    def rings(device: str) -> Ring:
        memory = Donated(memory=TensorDict(x=torch.zeros(2, 1000, 3, device=device)))
        return Ring(memory=memory, cursor=torch.arange(2, device=device))

    here, there = rings("cpu"), rings(DEVICE)
    step, place = program(vmap(add)), there.memory.memory["x"].data_ptr()
    run = turns(vmap(add))
    for n in (1, 3):
        there, _ = run(there, n)
        for _ in range(n):
            here, _ = vmap(add)(here)
    there, _ = step(there)
    here, _ = vmap(add)(here)
    assert there.memory.memory["x"].data_ptr() == place, "the memory has moved"
    torch.testing.assert_close(there.memory.memory["x"].cpu(), here.memory.memory["x"], rtol=0, atol=0)
    say("donated memory: written in place, as on the CPU, bit for bit")


def value_updates(name: str) -> None:
    """Updates from a replay, which is written where it is."""
    env = envs.make("CartPole-v1")
    config = dataclasses.replace(
        algos.default_config(name, env.spec),
        n_steps=8,
        capacity=64,
        batch_size=16,
        replay_ratio=4.0,
        learning_starts=16,
        adam_eps=1e-4,  # or steps along gradients that are nearly zero would be rounding errors
        hidden=(32, 32),
    )
    algo = algos.make(name, env.spec, config)
    init, step = fuse(algo, env)
    here = vmap(init)(random.split(random.key(0), 3))
    there = tree.map(lambda x: x.to(DEVICE, copy=True), here)
    places = [x.data_ptr() for x in memories(there)]
    run = turns(vmap(step))
    for n in (1, 5):
        here, _ = repeat(vmap(step), here, torch.tensor(n))
        there, _ = run(there, n)
    assert [x.data_ptr() for x in memories(there)] == places, "the replay has moved"
    assert (here.algo.updates == 10).all(), "other than two updates a step, from the second on"
    for a, b in zip(tree.leaves(here.algo), tree.leaves(there.algo), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-4)
    say(f"{name}'s state after ten updates: as on the CPU, to 1e-4; its replay is written in place")


def memories(state: Any) -> list[torch.Tensor]:
    """What is donated in a state."""
    leaves, structure = tree.flatten(state)
    return [x for x, is_donated in zip(leaves, tree.donated(structure), strict=True) if is_donated]


class Cell(nn.Module):
    """An actor-critic that adds up what it has seen of an episode."""

    def __init__(self, spec: EnvSpec, n_params: int) -> None:
        super().__init__()
        self.see = nets.linear(spec.observation_space.shape[0], 32)
        self.policy, self.value = nets.linear(32, n_params, 0.01), nets.linear(32, 1)

    def step(self, inputs: Inputs, carry: TensorDict) -> tuple[torch.Tensor, TensorDict]:
        h = torch.tanh(self.see(inputs.obs) + carry["h"])
        return h, TensorDict(h=h)

    def forward(self, inputs: Inputs, carry: TensorDict) -> tuple[tuple, TensorDict]:
        h, carry = nets.unroll(self.step, tree.map(torch.zeros_like, carry), inputs, carry)
        return (self.policy(h), self.value(h).squeeze(-1)), carry


def memory() -> None:
    """A policy with a memory: fused, sampled and evaluated on the device."""
    env, host = envs.make("CartPole-v1"), envs.host("gym:CartPole-v1")
    net = nets.recurrent(Cell(env.spec, 2), lambda n_envs: TensorDict(h=torch.zeros(n_envs, 32)))
    algo = make_ppo(env.spec, PPOConfig(n_envs=4, n_steps=8, epochs=1, total_steps=STEPS), net)
    init, step = fuse(algo, env)
    state = vmap(init)(random.split(random.key(0), 2))
    here, _ = vmap(step)(state)
    there, _ = program(vmap(step))(tree.map(lambda x: x.to(DEVICE), state))
    for a, b in zip(tree.leaves(here.algo.params), tree.leaves(there.algo.params), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-5)
    with samplers.central(host, algo, 4, 8, random.split(random.key(0, DEVICE), 2), n_workers=2) as feed:
        feed.publish(there.algo)
        batch = next(feed)
    assert batch.carry["h"].device.type == DEVICE, "the carry is elsewhere"
    lengths = [x.mean() for x in evaluate(algo, env, there.algo, 2, 0).lengths]
    say(f"a policy with a memory: as on the CPU to 1e-5, sampled and evaluated there, {lengths[0]:.0f} steps")


def fused(name: str, env_id: str, seeds: int, config: Mapping[str, Any] = {}) -> tuple[Callable, tuple, int]:
    """A training run's step of all seeds, its first state, and how many steps of the environment it takes."""
    env = envs.make(env_id)
    usual = dataclasses.replace(algos.default_config(name, env.spec), **config)
    algo = algos.make(name, env.spec, dataclasses.replace(usual, total_steps=max(STEPS, getattr(usual, "learning_starts", 0))))
    init, step = fuse(algo, env)
    packed, _ = tree.pack(vmap(init)(random.split(random.key(0, DEVICE), seeds)), axes=1)
    guarded = vmap(training.guard(step, init(random.key(0))))
    going = torch.ones(seeds, dtype=torch.bool, device=DEVICE)

    def one(state: tuple) -> tuple:
        packed, going, updates, info = guarded(*state)
        return (packed, going, updates), info

    return one, (packed, going, torch.zeros_like(going, dtype=torch.int64)), algo.n_envs * algo.n_steps * seeds


def replay(seeds: int) -> None:
    """Steps that are replayed give the numbers of single calls, sooner."""
    one, state, _ = fused("ppo", "CartPole-v1", seeds, {} if ON_GPU else {"n_steps": 8})
    single, run = program(one), turns(one)
    call = seconds(lambda: single(state))
    replayed, _ = run(state, 3)
    step_s = seconds(lambda: run(state, TURNS)) / TURNS
    for _ in range(3):
        state, _ = single(state)
    same = all(torch.equal(a, b) for a, b in zip(tree.leaves(replayed), tree.leaves(state), strict=True))
    say(
        f"PPO CartPole-v1, {seeds} seeds: one call {call * 1e3:.2f} ms, replayed {step_s * 1e3:.2f} ms a step; "
        f"the same numbers: {same}"
    )


def speed(name: str, env_id: str, seeds: int, turns: Callable = turns, config: Mapping[str, Any] = {}) -> None:
    """Steps a second of a run that is fused."""
    one, state, n_steps = fused(name, env_id, seeds, config)
    run = turns(one)

    def advance() -> None:  # who keeps a state that holds a replay could not go on from it twice
        nonlocal state
        state, _ = run(state, TURNS)

    start = time.perf_counter()
    advance()
    wait()
    first = time.perf_counter() - start
    step_s = seconds(advance) / TURNS
    say(
        f"{name} {env_id}, {seeds:5} seeds: the first call {first:.1f} s; {step_s * 1e3:.2f} ms a step of "
        f"{n_steps // seeds} = {n_steps / step_s:,.0f} steps/s in all"
    )


def pong(precision: str) -> None:
    """The update of PPO with the Nature CNN, and the collecting with its network on the device."""
    n_envs, n_steps = (8, 128) if ON_GPU else (2, 4)
    env = envs.make("ALE/Pong-v5")
    config = PPOConfig(n_envs=n_envs, clip=0.1, shared_torso=True, total_steps=STEPS, precision=precision)
    algo = make_ppo(env.spec, config)
    keys = random.split(random.key(0, DEVICE), 1)
    state = vmap(algo.init)(keys)
    learn = program(vmap(algo.update), threads=torch.get_num_threads())
    with samplers.central(env, algo, n_envs, n_steps, keys) as feed:
        feed.publish(state)
        batch = next(feed)
        start = time.perf_counter()
        learn(state, batch)
        wait()
        first = time.perf_counter() - start
        update, collecting = seconds(lambda: learn(state, batch)), seconds(lambda: next(feed))
    say(
        f"PPO ALE/Pong-v5, {precision}: first update {first:.1f} s, then {update * 1e3:.1f} ms (4 x {n_envs * n_steps:,} "
        f"frames); central collects {n_envs} x {n_steps} frames in {collecting * 1e3:.0f} ms"
    )


def command_line() -> None:
    """A run, its evaluation, its video and its end, as a user starts them."""
    seeds = 64 if ON_GPU else 2
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        for words in (
            f"train ppo --env CartPole-v1 --seeds {seeds} --threads 1 --steps {STEPS} --device {DEVICE} --out {out}",
            f"resume {out}",
            f"eval {out} --episodes 2",
            f"plot {out}",
        ):
            done = subprocess.run([sys.executable, "-m", "purerl", *words.split()], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"purerl {words}\n{done.stdout}\n{done.stderr}")
            say(f"purerl {words.split()[0]}: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        rows = read_rows(out / "seed_000" / "progress.csv")[1]
        say(f"{seeds} seeds: {float(rows[-1][RATE]) * seeds:,.0f} steps/s in all, return {rows[-1]['ReturnAverage']}")


def main() -> int:
    if not ON_GPU:
        torch.set_num_threads(1)  # more would wait for each other where others share the cores
    name = torch.cuda.get_device_name() if ON_GPU else "no GPU: the CPU, where only PPO is compiled"
    say(f"torch {torch.__version__}, {name}")
    board = {} if ON_GPU else {"n_envs": 4, "n_steps": 8, "n_minibatches": 4, "epochs": 1}
    parts = [
        draws,
        one_update,
        donation,
        *(partial(value_updates, name) for name in ("dqn", "rainbow")),
        memory,
        partial(replay, 64 if ON_GPU else 2),
        *(partial(speed, "ppo", "CartPole-v1", seeds, iterate) for seeds in ((64, 1, 2048) if ON_GPU else (2,))),
        *(partial(speed, "dqn", "CartPole-v1", seeds) for seeds in ((1, 64) if ON_GPU else (2,))),
        *(partial(speed, "pqn", "MinAtar/Breakout-v1", seeds, config=board) for seeds in ((1, 16) if ON_GPU else (2,))),
        command_line,
        *(partial(pong, precision) for precision in (("float32", "bfloat16") if ON_GPU else ("float32",))),
    ]
    failed = 0
    for part in parts:
        try:
            part()
        except Exception:
            failed += 1
            say(traceback.format_exc())
    say(f"{failed} of {len(parts)} parts failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
