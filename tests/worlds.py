"""Environments, policies and algorithms for the tests, importable by worker processes."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import MappingProxyType

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import register
from tensordict import TensorDict
from torch import nn

from purerl import A2CConfig, Algorithm, Env, EnvSpec, Policy, PPOConfig, make_a2c, make_ppo, nets, tree
from purerl import random as keys

BOX, PAIR = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), gym.spaces.MultiDiscrete([2, 3])
SPACES = {
    "plain": (BOX, gym.spaces.Discrete(3, start=1)),
    "continuous": (BOX, gym.spaces.Box(-1.0, 1.0, (2,), np.float32)),
    "nested": (
        gym.spaces.Dict(x=BOX, pair=gym.spaces.Tuple([gym.spaces.Discrete(4), gym.spaces.Box(0, 255, (2, 2), np.uint8)])),
        gym.spaces.Dict(move=gym.spaces.Discrete(3), aim=gym.spaces.Tuple([gym.spaces.Box(-1, 1, (2,)), PAIR])),
    ),
}


class Walk(gym.Env):
    """A state that actions push; episodes of random length up to `longest`: even ones terminate, odd ones are cut."""

    def __init__(self, kind="plain", longest=9, terminal=True):
        self.kind, self.longest, self.terminal = kind, longest, terminal
        self.observation_space, self.action_space = SPACES[kind]

    def _obs(self):
        x = self.x.astype(np.float32)
        if self.kind != "nested":
            return x
        return {"pair": (self.n % 4, np.full((2, 2), self.n % 256, np.uint8)), "x": x}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.n, self.end = 0, int(self.np_random.integers(1, self.longest + 1))
        self.x = self.np_random.normal(size=3)
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        push = np.sum([np.sum(leaf) for leaf in leaves(action)])
        self.n += 1
        self.x = 0.9 * self.x + push * np.array([1.0, -0.5, 0.1])
        over = self.n >= self.end
        terminated = over and self.end % 2 == 0 and self.terminal
        info = {"depth": float(self.x[0])} if over else {}
        return self._obs(), float(self.x.sum()), terminated, over and not terminated, info


def leaves(x):
    if isinstance(x, dict):
        return [leaf for part in x.values() for leaf in leaves(part)]
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, tuple) else [x]


# What a faulty step returns in the place of what it should.
WRONG = {
    "shape": {"obs": np.zeros(4, np.float32)},
    "dtype": {"obs": np.zeros(3, np.complex64)},
    "nan": {"obs": np.array([0.0, np.nan, 0.0], np.float32)},
    "inf": {"obs": np.array([0.0, np.inf, 0.0], np.float32)},
    "ragged": {"obs": [[1.0], [1.0, 2.0], 3.0]},
    "reward": {"reward": float("nan")},
    "infinite reward": {"reward": -float("inf")},
    "large reward": {"reward": 1e300},
    "word": {"reward": "much"},
    "rewards": {"reward": np.array([3.0, 7.0])},
    "reward of one axis": {"reward": np.array([3.0])},
    "reward dict": {"reward": {"goal": 1.0}},
    "no reward": {"reward": None},
    "complex reward": {"reward": 1j},
    "terminated": {"terminated": np.array([True, False])},
    "truncated": {"truncated": "no"},
}


def take(flag):
    """Whether a file was still there: it is taken away, so that only one environment of all processes goes wrong once."""
    try:
        os.remove(flag)
    except FileNotFoundError:
        return False
    return True


class Faulty(Walk):
    """Goes wrong at its step `at` (0: in reset), if `here` says so: the file `flag` exists, or there is none to look for."""

    def __init__(self, fault, at=5, flag=None, **kwargs):
        super().__init__(**kwargs)
        self.fault, self.at, self.flag, self.steps = fault, at, flag, 0

    def reset(self, seed=None, options=None):
        if self.at == 0:
            self._go_wrong()
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        result = super().step(action)
        if self.steps != self.at or (self.flag is not None and not take(self.flag)):
            return result
        right = dict(zip(("obs", "reward", "terminated", "truncated", "info"), result, strict=True))
        return tuple({**right, **self._go_wrong()}.values())

    def _go_wrong(self):
        match self.fault:
            case "raise":
                raise ZeroDivisionError("the world ended")
            case "hang":
                time.sleep(1000)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "stop":
                raise StopIteration
            case "quit":
                sys.exit(0)
        return WRONG.get(self.fault, {})


class Brittle(Walk):
    """Kills its process at a step, once, and the next process, where it is made again."""

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        self._die_of("made again", then="nothing")

    def step(self, action):
        if self.n == 2:
            self._die_of("step", then="made again")
        return super().step(action)

    def _die_of(self, cause, then):
        try:
            (self.folder / cause).rename(self.folder / then)
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class Retentive(gym.Env):
    """Shows the last two actions that it was sent, which it keeps as they came."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Box(-1, 1, (1,))

    def reset(self, seed=None, options=None):
        self.kept = [np.zeros(1, np.float32)] * 2
        return self._obs(), {}

    def _obs(self):
        return np.concatenate(self.kept).astype(np.float32)

    def step(self, action):
        self.kept = [self.kept[1], action]
        return self._obs(), 1.0, False, False, {}


class Wandering(Walk):
    """Goes to another folder with every reset."""

    def __init__(self, folder, **kwargs):
        super().__init__(**kwargs)
        self.folder = folder

    def reset(self, seed=None, options=None):
        os.chdir(self.folder)
        return super().reset(seed=seed, options=options)


class Drawing(gym.Env):
    """Shows what the global generators of numpy, Python and torch say; episodes of 5 steps."""

    observation_space, action_space = gym.spaces.Box(0, 1, (6,), np.float32), gym.spaces.Discrete(2)

    def __init__(self):
        self.made = self._draw()

    def _draw(self):
        return np.array([np.random.rand(), random.random(), torch.rand(()).item()], np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return np.concatenate([self.made, self._draw()]), {}

    def step(self, action):
        self.n += 1
        return np.concatenate([self.made, self._draw()]), random.random(), self.n == 5, False, {}


class Whereabouts(gym.Env):
    """Shows a variable of the environment, and whether there is a file in the working folder."""

    observation_space, action_space = gym.spaces.Box(0, 9, (2,), np.float32), gym.spaces.Discrete(2)

    def _obs(self):
        return np.array([float(os.environ.get("PURERL_TEST", "0")), os.path.exists("here.txt")], np.float32)

    def reset(self, seed=None, options=None):
        return self._obs(), {}

    def step(self, action):
        return self._obs(), 0.0, False, False, {}


class Family(gym.Env):
    """Starts a process of its own, which it asks at each step for its number."""

    observation_space, action_space = gym.spaces.Box(0, 1 << 23, (1,), np.float32), gym.spaces.Discrete(2)

    def __init__(self):
        self.ours, theirs = multiprocessing.Pipe()
        self.child = multiprocessing.get_context("fork").Process(target=echo, args=(theirs,))
        self.child.start()

    def reset(self, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.ours.send("who")
        return np.full(1, self.ours.recv(), np.float32), 0.0, False, False, {}

    def close(self):
        self.ours.send(None)
        self.child.join()


def echo(connection):
    while connection.recv() is not None:
        connection.send(os.getpid())


class OldReset(Walk):
    """As in Gym before 0.26: reset gives only an observation."""

    def reset(self, seed=None, options=None):
        return super().reset(seed=seed)[0]


class Seedless(Walk):
    """As in Gym before 0.22: reset takes no seed."""

    def reset(self):
        return super().reset()


class OldStep(Walk):
    """As in Gym before 0.26: step gives four values."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


class Lacking(Walk):
    """A Dict observation without one of its keys."""

    def __init__(self):
        super().__init__("nested")

    def _obs(self):
        obs = super()._obs()
        return {"x": obs["x"]} if self.n == 2 else obs


class Outside(gym.Env):
    """Counts on beyond its discrete space."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, kind):
        counted = gym.spaces.Discrete(3, start=1)
        self.kind = kind
        self.observation_space = {
            "discrete": counted,
            "multi": gym.spaces.MultiDiscrete([4, 9]),
            "binary": gym.spaces.MultiBinary(2),
            "nested": gym.spaces.Dict(n=counted),
        }[kind]

    def _obs(self):
        match self.kind:
            case "discrete":
                return self.n
            case "nested":
                return {"n": self.n}
            case "multi":
                return np.array([self.n, 0])
            case "binary":
                return np.array([self.n // 2, 0], np.int8)

    def reset(self, seed=None, options=None):
        self.n = 1
        return self._obs(), {}

    def step(self, action):
        self.n += 1
        return self._obs(), 0.0, False, False, {}


class Bytes(gym.Env):
    """Shows more than its bytes can hold."""

    observation_space, action_space = gym.spaces.Box(-128, 127, (2,), np.int8), gym.spaces.Discrete(2)

    def __init__(self, wrong=True):
        self.wrong = wrong

    def reset(self, seed=None, options=None):
        self.n = 0
        return np.zeros(2, np.int64), {}

    def step(self, action):
        self.n += 1
        return np.array([100 * self.n * self.wrong, 0]), 0.0, False, False, {}


class Unmade(Walk):
    """Can be made once only: for a look at its spaces."""

    def __init__(self, flag):
        if not os.path.exists(flag):
            raise LookupError("no file")
        os.remove(flag)
        super().__init__()


class Informed(Walk):
    """Its infos at an episode's end are what they should not be."""

    def __init__(self, info):
        super().__init__(longest=3)
        self.info = info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, self.info if info else {}


class Fixed(gym.Env):
    """Episodes of so many steps, each worth 1, which count all of their steps; at one of them something may happen, once."""

    observation_space, action_space = gym.spaces.Box(0, np.inf, (2,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, length=200, flag=None, event="die", at=150):
        self.length, self.flag, self.event, self.at, self.steps = length, flag, event, at, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return np.full(2, self.steps, np.float32), {}

    def step(self, action):
        self.n, self.steps = self.n + 1, self.steps + 1
        obs = np.full(2, self.steps, np.float32)
        if self.flag is not None and self.n == self.at and take(self.flag):
            if self.event == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            obs[1] = np.inf
        return obs, 1.0, self.n == self.length, False, {}


class Painted(gym.Env):
    """Draws itself into one array again and again, in a size that is an option, as its observation."""

    action_space, metadata = gym.spaces.Discrete(2), {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, size=(2, 2), loud=True, render_mode=None):
        assert loud is False
        self.size, self.render_mode = tuple(size), render_mode
        self.observation_space = gym.spaces.Box(0, 1, self.size)
        self.canvas = np.zeros((32, 32, 3), np.uint8)

    def reset(self, seed=None, options=None):
        self.n = 0
        return np.zeros(self.size, np.float32), {}

    def step(self, action):
        self.n += 1
        return np.zeros(self.size, np.float32), 1.0, self.n == 5, False, {}

    def render(self):
        self.canvas[:] = 40 * self.n
        return self.canvas


class Rhythm(gym.Env):
    """Pays 1 for the action `n % 3` at the n-th step of an episode, whatever is observed, which is nothing; episodes of 5 steps."""

    observation_space, action_space = gym.spaces.Box(0, 1, (3,), np.float32), gym.spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        reward = float(action == self.n % 3)
        self.n += 1
        return np.zeros(3, np.float32), reward, self.n == 5, False, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


def _rhythm_step(n, action, noise):
    after = n + 1
    reward = (action == n % 3).float()
    return after, torch.zeros(3), reward, after == 5, torch.zeros((), dtype=torch.bool), {}


RHYTHM = Env(
    EnvSpec("Rhythm", Rhythm.observation_space, Rhythm.action_space),
    reset=lambda key: (torch.zeros((), dtype=torch.int64), torch.zeros(3)),
    step=_rhythm_step,
)


def counting(spec):
    """The policy that counts its steps since `first` and acts by the count; its state holds more than it acts with."""

    def act(shift, inputs, carry, noise):
        count = torch.where(inputs.first, 0, carry["count"])
        return (count + shift) % 3, TensorDict(count=count), TensorDict(count=count + 1)

    def mode(shift, inputs, carry):
        action, _, carry = act(shift, inputs, carry, None)
        return action, carry

    return Policy(
        init=lambda key: TensorDict(junk=torch.zeros(2, device=key.device), shift=torch.zeros((), dtype=torch.int64)),
        act=act,
        mode=mode,
        draw=lambda key: key,
        spec=spec,
        carry=lambda n_envs: TensorDict(count=torch.full((n_envs,), 7)),  # which is never seen: an episode begins with `first`
        acting=lambda state: state["shift"],
    )


class GRU(nn.Module):
    """A GRU cell over observation, last action (one of n) and last reward, and heads for a policy and a value."""

    def __init__(self, n_obs, n_actions, width=8):
        super().__init__()
        self.n_actions = n_actions
        self.gates, self.new = nn.Linear(n_obs + n_actions + 1 + width, 2 * width), nn.Linear(n_obs + n_actions + 1, width)
        self.old = nn.Linear(width, width)
        self.policy, self.value = nn.Linear(width, n_actions), nn.Linear(width, 1)

    def step(self, inputs, carry):
        chosen = (inputs.prev_action[:, None] == torch.arange(self.n_actions, device=inputs.obs.device)).float()
        x, h = torch.cat([inputs.obs, chosen, inputs.prev_reward[:, None]], -1), carry["h"]
        keep, reset = torch.sigmoid(self.gates(torch.cat([x, h], -1))).chunk(2, -1)
        h = keep * h + (1 - keep) * torch.tanh(self.new(x) + reset * self.old(h))
        return h, TensorDict(h=h)

    def forward(self, inputs, carry):
        h, carry = nets.unroll(self.step, tree.map(torch.zeros_like, carry), inputs, carry)
        return (self.policy(h), self.value(h).squeeze(-1)), carry


def gru(spec, width=8):
    with torch.device("meta"):
        module = GRU(spec.observation_space.shape[0], int(spec.action_space.n), width)
    return nets.recurrent(module, lambda n_envs: TensorDict(h=torch.zeros(n_envs, width)))


def make_gru_ppo(spec, config: PPOConfig | None = None):
    return make_ppo(spec, config or PPOConfig(n_envs=4, n_steps=8, epochs=2, n_minibatches=2), gru(spec))


def make_gru_a2c(spec, config: A2CConfig | None = None):
    return make_a2c(spec, config or A2CConfig(n_envs=4, n_steps=8), gru(spec))


def make_bare(spec):
    """An algorithm without a config, numbers or a memory, whose state nobody else knows the names of."""
    n = int(spec.action_space.n)

    def init(key, hyper=MappingProxyType({})):
        return TensorDict(theta=torch.zeros(n, device=key.device), turn=torch.zeros((), dtype=torch.int64, device=key.device))

    def act(theta, inputs, carry, noise):
        return torch.argmax(theta + noise, -1), TensorDict(), carry

    def mode(theta, inputs, carry):
        return torch.argmax(theta, -1).expand(inputs.first.shape), carry

    def update(state, batch):
        chosen = (batch.action[..., None] == torch.arange(n, device=batch.action.device)).float()
        theta = state["theta"] + (batch.reward[..., None] * chosen).mean((0, 1))
        return TensorDict(theta=theta, turn=state["turn"] + 1), TensorDict(best=theta.max())

    def draw(key):
        return keys.gumbel(key, (n,))

    return Algorithm(init, act, update, mode, draw, spec, n_envs=4, n_steps=8, acting=lambda state: state["theta"])


register("Painted-v0", Painted)
register("Walk-v0", Walk, max_episode_steps=6)
register("Fixed-v0", Fixed)
register("Informed-v0", Informed)
register("Faulty-v0", Faulty)
register("Wandering-v0", Wandering)
register("Rhythm-v0", Rhythm)


def make_flaky():
    """Pure, of one number and one action; its reward is NaN after one step in a thousand."""

    def reset(noise):
        return noise, noise[None]

    def step(state, action, noise):
        reward = torch.where(noise > 0.999, torch.nan, -action.sum().abs())
        state, no = 0.9 * state + noise, torch.zeros((), dtype=torch.bool)
        return state, state[None], reward, no, no.clone(), {}

    spec = EnvSpec("Flaky", gym.spaces.Box(-20, 20, (1,)), gym.spaces.Box(-1, 1, (1,)), max_episode_steps=20)
    return Env(spec, reset, step, draw=lambda key: keys.uniform(key, ()))
