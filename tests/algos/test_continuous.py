"""DDPG, TD3, SAC: purity, transforms, a probe with known values, slow references, bounds of actions."""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from tensordict import TensorDict

from purerl import SpentError, algos, compile, distributions, envs, fuse, random, tree, vmap
from purerl.algos import continuous as ac
from purerl.base import Env, EnvSpec
from purerl.replay import Transitions

OPTIONS = {"n_step": 2, "prioritized": True, "normalize_obs": True, "n_critics": 3, "norm": "layer", "policy_every": 4}
VARIANTS = {
    "ddpg": {},
    "td3": {"target_noise": 0.1},
    "sac": {"temperature": 0.02, "learn_temperature": False},
    "sac options": {**OPTIONS, "target_entropy": -4.0, "temperature": 0.02},
}
SMALL = {
    "n_envs": 8,
    "n_steps": 4,
    "capacity": 2000,
    "batch_size": 64,
    "utd": 0.125,
    "learning_starts": 64,
    "gamma": 0.8,
    "tau": 0.1,
    "actor_lr": 3e-3,
    "critic_lr": 5e-3,
    "hidden": (32, 32),
}


def make(variant, spec, **config):
    name = variant.split()[0]
    default = algos.default_config(name, spec)
    return algos.make(name, spec, dataclasses.replace(default, **{**SMALL, **VARIANTS[variant], **config}))


def _probe():
    """A target is shown, and the reward is minus the square of what the action misses it by; bounds are not symmetric. Half of the
    episodes terminate at once; the others go on with the same target and are cut after three steps."""
    never = torch.zeros((), dtype=torch.bool)

    def reset(noise):
        target, kind = 1.0 + 2.0 * noise[0], (noise[1] < 0.5).float()
        state = torch.stack([target, kind])
        return state, state.clone()

    def step(state, action, noise):
        reward = 1.0 - (action[0] - state[0]) ** 2
        return state, state.clone(), reward, state[1] > 0, never.clone(), {}

    spec = EnvSpec("probe/aim", gym.spaces.Box(0.0, 3.0, (2,)), gym.spaces.Box(0.0, 4.0, (1,)), 3)
    return envs.pure(Env(spec, reset, step, draw=lambda key: random.uniform(key, (2,))))


def steps(step, state, n):
    for _ in range(n):
        state, info = step(state)
    return state, info


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_lanes_are_the_lone_runs_and_reach_known_values(variant):
    """Compiled and mapped against lone eager runs; compiled once; the inputs, but for what is donated, are left alone; and after
    some hundred steps the policy aims well, and the critics know 1 where an episode ends and 5 = 1 / (1 - 0.8) where it is cut."""
    env = _probe()
    algo = make(variant, env.spec)
    init, step = fuse(algo, env)
    keys = random.split(random.key(1), 2)
    start = vmap(init)(keys)
    before = tree.map(torch.clone, start.algo.params)
    compiled = compile(vmap(step))
    after, info = compiled(start)
    assert_trees_equal(start.algo.params, before)
    with pytest.raises(SpentError):
        start.algo.replay.steps.content.memory["reward"].sum()
    after, info = steps(compiled, after, 3)
    for i in (0, 1):
        lone, lone_info = steps(step, init(keys[i]), 4)
        assert torch.equal(lone.key, after.key[i])
        torch.testing.assert_close(lone.actors.inputs.prev_action, after.actors.inputs.prev_action[i], rtol=1e-3, atol=1e-4)
        assert_trees_equal(lone_info, info[i], rtol=1e-3, atol=1e-3)
        assert_trees_equal(lone.algo.params, after.algo.params[i], rtol=1e-2, atol=1e-3)
    assert (after.algo.updates == 12).all()  # four a batch, from the second batch on
    learnt, _ = steps(compiled, after, 250)
    for i in (0, 1):
        check(algo, env, tree.index(learnt.algo, i))


def check(algo, env, state):
    targets = torch.tensor([1.2, 2.0, 2.8])
    for kind, value in ((1.0, 1.0), (0.0, 5.0)):
        obs = torch.stack([targets, torch.full((3,), kind)], -1)
        inputs = tree.expand(tree.map(lambda x: x[0], ac.blank_inputs(env.spec, 1)), 3).replace(obs=obs)
        action, _ = algo.mode(algo.acting(state), inputs, algo.carry(3))
        torch.testing.assert_close(action[:, 0], targets, rtol=0, atol=0.2)
        name = type(algo.config).__name__.removesuffix("Config").lower()
        model = ac.make_model(env.spec, algo.config, name == "sac")
        seen = model.see(state.moments, obs)
        found = ac.values(model, state.params["critics"], seen, model.bounds.inward(action))
        entropy = 0.2 if name == "sac" else 0.0  # a soft value holds the entropy's too
        torch.testing.assert_close(found.mean(0), torch.full((3,), value), rtol=0, atol=0.15 * value + entropy * value)
