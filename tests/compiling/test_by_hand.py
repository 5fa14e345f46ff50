"""`torch.compile(vmap(step), fullgraph=True)` by hand, for every algorithm, or another that all of its parts are in."""

import dataclasses

import pytest
import torch
from conftest import CONTINUOUS, assert_trees_equal

from purerl import algos, envs, fuse, random, tree, vmap

BATCHES = {"n_envs": 2, "n_steps": 4, "hidden": (8,)}
MINIBATCHES = {**BATCHES, "epochs": 1, "n_minibatches": 2}
REPLAY = {"n_envs": 2, "n_steps": 3, "capacity": 16, "batch_size": 4, "replay_ratio": 1.0, "learning_starts": 6, "hidden": (8,)}
SUPPORT = {"n_atoms": 5, "v_min": -2.0, "v_max": 6.0}
CRITICS = {"n_envs": 2, "n_steps": 4, "capacity": 16, "batch_size": 4, "utd": 0.5, "learning_starts": 6, "hidden": (8,)}
CONFIGS = {
    "ppo": MINIBATCHES,
    "pqn": MINIBATCHES,
    "dqn": REPLAY,
    "qrdqn": {**REPLAY, "n_quantiles": 3},
    "rainbow": {**REPLAY, **SUPPORT},
    "td3": {**CRITICS, "policy_every": 4},
    "sac": {**CRITICS, "policy_every": 4},
    "sac_discrete": {**CRITICS, "policy_every": 4},
    "droq": {**CRITICS, "policy_every": 4, "n_critics": 3, "subset": 2},
    "tqc": {**CRITICS, "policy_every": 4, "n_quantiles": 5},
    "crossq": {**CRITICS, "policy_every": 4, "critic_hidden": (8, 8)},
    "xqc": {**CRITICS, "policy_every": 4, "critic_hidden": (8, 8), "n_atoms": 11},
}


PART_OF = {"a2c": "ppo", "c51": "rainbow", "ddpg": "td3", "redq": "droq"}


def test_every_algorithm_is_here():
    assert {*CONFIGS, *PART_OF} == set(algos.ALGORITHMS)
    assert set(PART_OF.values()) <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_compile_takes_the_fused_step_as_it_is(name):
    """The lanes of eager steps; one compilation; a replay is copied, and the state before is as good as ever."""
    env = envs.make("Pendulum-v1" if name in CONTINUOUS else "CartPole-v1")
    algo = algos.make(name, env.spec, dataclasses.replace(algos.default_config(name, env.spec), **CONFIGS[name]))
    init, step = fuse(algo, env)
    start = vmap(init)(random.split(random.key(3), 2))
    before = tree.map(torch.clone, start)
    compiled = torch.compile(vmap(step), fullgraph=True, backend="aot_eager")
    state, _ = compiled(start)
    assert_trees_equal(tree.leaves(start), tree.leaves(before))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            state, info = compiled(state)
    expected = start
    for _ in range(4):
        expected, expected_info = vmap(step)(expected)
    assert_trees_equal(tree.leaves(state), tree.leaves(expected), rtol=1e-4, atol=1e-5)
    assert_trees_equal(tree.leaves(info), tree.leaves(expected_info), rtol=1e-4, atol=1e-5)
