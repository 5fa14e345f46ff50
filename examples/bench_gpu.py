"""What a GPU does: `python examples/bench_gpu.py`. First that it computes the same, then how fast.

Without a GPU it runs on the CPU with small sizes, so that it is known to work before a GPU is at hand.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorClass, TensorDict
from torch import nn

from purerl import (
    Donated,
    EnvSpec,
    Inputs,
    PPOConfig,
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

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
START = time.perf_counter()
STEPS = 512_000 if DEVICE == "cuda" else 5 * 512  # of a lane


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:5.0f} s] {text}", flush=True)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds(f: Callable[[], object], n: int) -> float:
    """Of one call, the median of n."""
    times = []
    for _ in range(n):
        wait()
        start = time.perf_counter()
        f()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def draws() -> None:
    here, there = random.key(7), random.key(7, DEVICE)
    found = {
        "bits": lambda key: random.bits(key, (1001,)),
        "split": lambda key: random.split(key, 5),
        "uniform": lambda key: random.uniform(key, (1001,)),
        "randint": lambda key: random.randint(key, (1001,), -3, 9),
        "permutation": lambda key: random.permutation(key, 1001),
        "bernoulli": lambda key: random.bernoulli(key, 0.3, (1001,)),
        "normal": lambda key: random.normal(key, (1001,)),
    }
    for name, draw in found.items():
        a, eager, compiled = draw(here), draw(there).cpu(), compile(draw)(there).cpu()
        exact = name != "normal"  # a logarithm and a cosine of another library
        torch.testing.assert_close(eager, a, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
        torch.testing.assert_close(compiled, a, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
    say(f"{', '.join(found)}: as on the CPU, bit for bit but the last, eager and compiled")


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
    step, place = compile(vmap(add)), there.memory.memory["x"].data_ptr()
    run = iterate(step)
    for n in (1, 3):
        there, _ = run(there, n)
        for _ in range(n):
            here, _ = vmap(add)(here)
    there, _ = step(there)
    here, _ = vmap(add)(here)
    assert there.memory.memory["x"].data_ptr() == place, "the memory has moved"
    torch.testing.assert_close(there.memory.memory["x"].cpu(), here.memory.memory["x"], rtol=0, atol=0)
    say("donated memory: written in place, as on the CPU, bit for bit")


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
    there, _ = compile(vmap(step))(tree.map(lambda x: x.to(DEVICE), state))
    for a, b in zip(tree.leaves(here.algo.params), tree.leaves(there.algo.params), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-5)
    with samplers.central(host, algo, 4, 8, random.split(random.key(0, DEVICE), 2), n_workers=2) as feed:
        feed.publish(there.algo)
        batch = next(feed)
    assert batch.carry["h"].device.type == DEVICE, "the carry is elsewhere"
    lengths = [x.mean() for x in evaluate(algo, env, there.algo, 2, 0).lengths]
    say(f"a policy with a memory: as on the CPU to 1e-5, sampled and evaluated there, {lengths[0]:.0f} steps")


def cartpole(seeds: int) -> None:
    env = envs.make("CartPole-v1")
    algo = make_ppo(env.spec, PPOConfig(total_steps=STEPS))
    init, step = fuse(algo, env)
    keys = random.split(random.key(0, DEVICE), seeds)
    packed, _ = tree.pack(vmap(init)(keys), axes=1)
    compiled = compile(vmap(training.guard(step, init(random.key(0)))))
    going = torch.ones(seeds, dtype=torch.bool, device=DEVICE)
    state = packed, going, torch.zeros_like(going, dtype=torch.int64)

    def one(state: tuple) -> tuple:
        packed, going, updates, info = compiled(*state)
        return (packed, going, updates), info

    start = time.perf_counter()
    one(state)
    wait()
    compilation = time.perf_counter() - start
    call = seconds(lambda: one(state), 5)
    run = iterate(one)
    replayed = run(state, 3)[0]
    for _ in range(3):
        state, _ = one(state)
    same = all(torch.equal(a, b) for a, b in zip(tree.leaves(replayed), tree.leaves(state), strict=True))
    step_s = seconds(lambda: run(state, 10), 3) / 10
    rate = algo.n_envs * algo.n_steps * seeds / step_s
    say(
        f"PPO CartPole-v1, {seeds:5} seeds: compiled in {compilation:.1f} s; one call {call * 1e3:.2f} ms, replayed "
        f"{step_s * 1e3:.2f} ms a step = {rate:,.0f} steps/s in all; the same numbers: {same}"
    )


def pong(precision: str) -> None:
    """The update of PPO with the Nature CNN, and the collecting with its network on the device."""
    env = envs.make("ALE/Pong-v5")
    algo = make_ppo(env.spec, PPOConfig(n_envs=8, clip=0.1, shared_torso=True, total_steps=STEPS, precision=precision))
    keys = random.split(random.key(0, DEVICE), 1)
    state = vmap(algo.init)(keys)
    learn = compile(vmap(algo.update), threads=torch.get_num_threads())
    with samplers.central(env, algo, 8, 128, keys) as feed:
        feed.publish(state)
        batch = next(feed)
        start = time.perf_counter()
        learn(state, batch)
        wait()
        compilation = time.perf_counter() - start
        update, collecting = seconds(lambda: learn(state, batch), 5), seconds(lambda: next(feed), 3)
    say(
        f"PPO ALE/Pong-v5, {precision}: update compiled in {compilation:.1f} s, {update * 1e3:.1f} ms (4 x 1,024 frames); "
        f"central collects 8 x 128 frames in {collecting * 1e3:.0f} ms"
    )


def command_line() -> None:
    """A run, its evaluation, its video and its end, as a user starts them."""
    seeds = 64 if DEVICE == "cuda" else 2
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        for words in (
            f"train ppo --env CartPole-v1 --seeds {seeds} --steps {STEPS} --device {DEVICE} --out {out}",
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
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: the CPU"
    say(f"torch {torch.__version__}, {name}")
    on_gpu = DEVICE == "cuda"
    parts = [
        draws,
        one_update,
        donation,
        memory,
        *(partial(cartpole, seeds) for seeds in ((64, 2048) if on_gpu else (2,))),
        partial(pong, "float32"),
    ]
    parts += [command_line, *((partial(cartpole, 1), partial(pong, "bfloat16")) if on_gpu else ())]
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
