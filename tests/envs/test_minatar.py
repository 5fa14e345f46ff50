"""The games against MinAtar's own, which are given the same random numbers."""

import functools
import logging
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

logging.disable(logging.WARNING)  # minatar warns that it cannot draw without seaborn
from minatar import Environment  # noqa: E402

from purerl import autoreset, compile, random, vmap  # noqa: E402
from purerl.envs.minatar import asterix, breakout, freeway, seaquest, space_invaders  # noqa: E402

logging.disable(logging.NOTSET)


class Script:
    """A generator that gives the numbers of `[0, 1)` that it is told."""

    def __init__(self):
        self.numbers = []

    def rand(self, n=None):
        return self._next(n)

    def randint(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        return low + np.int64(self._next(size) * np.float32(high - low))

    def _next(self, n):
        taken = [np.float32(self.numbers.pop(0)) for _ in range(n or 1)]
        return np.array(taken) if n else taken[0]


class Game(NamedTuple):
    module: object
    env: object
    script: object  # from the numbers of one environment's noise, the numbers in the order in which the original takes them


GAMES = {
    "asterix": Game(asterix, asterix.ENV, list),
    "breakout": Game(breakout, breakout.ENV, lambda right: [0.75 if right else 0.25]),
    "freeway": Game(freeway, freeway.ENV, lambda speed: [*(abs(speed) - 0.5) / 5, *np.where(speed > 0, 0.75, 0.25)]),
    "seaquest": Game(seaquest, seaquest.ENV, list),
    "space_invaders": Game(space_invaders, space_invaders.ENV, lambda key: []),
}


@functools.cache
def compiled(name):
    return compile(partial(autoreset.step, GAMES[name].env))


def tell_apart(original):
    """Let enemies take the first three numbers and divers the next two, whether both enter or one of them."""
    spawn_enemy, spawn_diver = original._spawn_enemy, original._spawn_diver

    def enemy():
        numbers = list(original.random.numbers)
        spawn_enemy()
        original.random.numbers = numbers

    def diver():
        original.random.numbers = original.random.numbers[3:]
        spawn_diver()

    original._spawn_enemy, original._spawn_diver = enemy, diver


def compare(name, policy, n_envs=16, n_steps=500, immortal=False):
    """Play both step for step; immortals play on. Returns the originals, how many episodes ended, and the sum of rewards."""
    _, env, script = GAMES[name]
    step = compiled(name)
    rng = np.random.RandomState(0)
    noises = vmap(vmap(env.draw))(random.split(random.key(1), n_steps * n_envs).unflatten(0, (n_steps, n_envs)))
    originals = [Environment(name, sticky_action_prob=0.0) for _ in range(n_envs)]
    for original in originals:
        original.random, original.env.random = Script(), Script()
        if name == "seaquest":
            tell_apart(original.env)

    def reset(i, numbers):
        originals[i].env.random.numbers = script(numbers)
        originals[i].reset()
        return originals[i].state()

    state, obs = vmap(env.reset)(noises[0])
    seen = [reset(i, noises[0][i].numpy()) for i in range(n_envs)]
    done, ended, total = torch.zeros(n_envs, dtype=torch.bool), 0, 0.0
    for t in range(1, n_steps):
        np.testing.assert_array_equal(obs.numpy(), np.stack(seen).transpose(0, 3, 1, 2))
        actions = policy(np.stack(seen), rng)
        state, obs, reward, terminated, truncated = step(state, torch.from_numpy(actions), noises[t], done)
        assert not truncated.any()
        numbers, rewards, ends = noises[t].numpy(), np.zeros(n_envs), np.zeros(n_envs, bool)
        for i, original in enumerate(originals):
            if done[i]:
                seen[i] = reset(i, numbers[i])
                continue
            original.random.numbers, original.env.random.numbers = [0.5], script(numbers[i])
            rewards[i], ends[i] = original.act(actions[i])
            seen[i] = original.state()
            original.env.terminal = ends[i] and not immortal
        np.testing.assert_array_equal(reward.numpy(), rewards)
        np.testing.assert_array_equal(terminated.numpy(), ends)
        done, ended, total = terminated & (not immortal), ended + ends.sum(), total + rewards.sum()
    return originals, ended, total


def at_random(obs, rng):
    return rng.randint(0, 6, len(obs))


def catch_the_ball(obs, rng):
    """Below the ball, but for a few moves at random."""
    ball, paddle = obs[..., 1].any(1).argmax(-1), obs[:, 9, :, 0].argmax(-1)
    action = np.where(ball < paddle, 1, np.where(ball > paddle, 3, 0))
    return np.where(rng.rand(len(obs)) < 0.05, rng.randint(0, 6, len(obs)), action)


def test_breakout_is_the_originals():
    _, ended, _ = compare("breakout", at_random, n_steps=300)
    assert ended > 100
    _, _, total = compare("breakout", catch_the_ball, n_envs=8, n_steps=1200)
    assert total / 8 > 40  # a row is cleared and comes back


def test_freeway_is_the_originals():
    _, ended, total = compare("freeway", lambda obs, rng: rng.choice([2, 2, 2, 4, 0], len(obs)), n_envs=4, n_steps=2600)
    assert ended == 4
    assert total > 20


def test_asterix_is_the_originals():
    _, ended, total = compare("asterix", at_random)
    assert ended > 50
    assert total > 50


def test_space_invaders_is_the_originals():
    _, ended, total = compare("space_invaders", at_random)
    assert ended > 50
    assert total > 100


def test_seaquest_is_the_originals():
    _, ended, _ = compare("seaquest", at_random)
    assert ended > 50


def test_seaquest_is_the_originals_when_it_is_hard():
    originals, _, total = compare("seaquest", at_random, n_envs=8, n_steps=1500, immortal=True)
    assert min(original.env.difficulty_ramp() for original in originals) > 5
    assert total > 100
