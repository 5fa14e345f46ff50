"""Every arrangement of processes gives the same batches."""

import subprocess
import sys
from functools import partial

import gymnasium as gym
import pytest
import torch
from conftest import assert_trees_equal
from worlds import Walk

from purerl import compile, envs, make_a2c, make_ppo, random, samplers, tree, vmap
from purerl.algos import A2CConfig, PPOConfig
from purerl.samplers.acting import make_act, make_device_act


def vectors(make):
    return lambda n: gym.vector.SyncVectorEnv([make] * n)


def arrangements(make, n_envs, n_workers):
    """Name, and a function of `(algo, n_envs, n_steps, key)` that opens the feed."""
    yield "serial", partial(samplers.serial, make)
    yield "parallel", partial(samplers.parallel, make, n_workers=n_workers)
    yield "central", partial(samplers.central, make, n_workers=n_workers)
    yield "native", partial(samplers.native, vectors(make))
    if n_envs > 1:
        yield "alternating", partial(samplers.alternating, make, n_workers=2)
        yield "no overlap", partial(samplers.alternating, make, n_workers=2, overlap=False)


def collect(feed, states):
    with feed:
        batches = []
        for state in states:
            feed.publish(state)
            batches.append(next(feed))
        return batches


@pytest.mark.parametrize(
    ("n_envs", "n_workers", "n_steps", "longest", "kind", "n_seeds"),
    [
        (1, 1, 1, 1, "plain", 0),
        (9, 3, 7, 12, "nested", 2),
        (5, 2, 4, 3, "continuous", 1),
        (4, 3, 3, 5, "plain", 2),
    ],
)
def test_the_same_bits(n_envs, n_workers, n_steps, longest, kind, n_seeds):
    make = partial(Walk, kind, longest)
    algo = make_a2c(envs.host(make).spec, A2CConfig(n_envs=n_envs, n_steps=n_steps, hidden=(8,)))
    key = random.key(n_envs) if n_seeds == 0 else random.split(random.key(n_envs), n_seeds)
    init = vmap(algo.init) if n_seeds else algo.init
    states = [init(random.key(i) if n_seeds == 0 else random.split(random.key(i), n_seeds)) for i in range(10)]
    batches = {
        name: collect(open_feed(algo, n_envs, n_steps, key), states) for name, open_feed in arrangements(make, n_envs, n_workers)
    }
    for name, got in batches.items():
        for i, (a, b) in enumerate(zip(batches["serial"], got, strict=True)):
            for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
                assert torch.equal(x, y), (name, i)


def test_learning_from_nested_observations_and_actions():
    make = partial(Walk, "nested")
    algo = make_ppo(envs.host(make).spec, PPOConfig(n_envs=4, n_steps=8, n_minibatches=2, hidden=(8,)))
    state = algo.init(random.key(0))
    (batch,) = collect(samplers.serial(make, algo, 4, 8, random.key(1)), [state])
    assert batch.action["aim", "0"].shape == (8, 4, 2)
    new, info = compile(algo.update)(state, batch)
    assert torch.isfinite(info["loss"])
    assert not torch.equal(new.params["actor.parts.0.weight"], state.params["actor.parts.0.weight"])


def test_resets_and_truncations_are_among_them():
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=8, n_steps=5, hidden=(8,)))
    batches = collect(samplers.serial(Walk, algo, 8, 5, random.key(0)), [algo.init(random.key(0))] * 20)
    whole = tree.concatenate(batches)
    for flags in (whole.terminated, whole.truncated, ~whole.valid, whole.inputs.first):
        assert 20 < flags.sum() < 400


def test_wide_layers_and_images_too():
    """What matrix libraries compute of a row can depend on how many rows there are: the tiles make it independent."""
    space = gym.spaces.Box(0, 255, (4, 36, 36), "uint8")

    class Picture(gym.Env):
        observation_space, action_space = space, gym.spaces.Discrete(4)

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            return self.np_random.integers(0, 256, space.shape, "uint8"), {}

        def step(self, action):
            return self.np_random.integers(0, 256, space.shape, "uint8"), float(action), False, False, {}

    for make, config in ((Picture, PPOConfig(n_envs=6, n_steps=4)), (Walk, PPOConfig(n_envs=6, n_steps=4, hidden=(300, 300)))):
        algo = make_ppo(envs.host(make).spec, config)
        states = [algo.init(random.key(i)) for i in range(2)]
        feeds = [open_feed(algo, 6, 4, random.key(3)) for _, open_feed in arrangements(make, 6, 3)]
        first, *others = [collect(feed, states) for feed in feeds]
        for other in others:
            for a, b in zip(first, other, strict=True):
                assert_trees_equal(a, b)


def test_acting_on_a_device_gives_nearly_the_same():
    """All environments in one call, as on a GPU, here on the CPU: the bits may differ, the numbers may not."""
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=6, n_steps=5, hidden=(8,)))
    state = algo.init(random.key(0))
    with samplers.serial(Walk, algo, 6, 5, random.key(0)) as feed:
        feed.publish(state)
        next(feed)
        buffer = feed._source._buffer
        act, _ = make_act(algo, buffer, range(6))
        act_there = make_device_act(algo, buffer, range(6), [x.clone() for x in buffer.torch["params"]])
        for t in range(5):
            act(t)
            expected = [x[t, :, :6].clone() for name in ("sent", "extras") for x in buffer.torch[name]]
            for name in ("sent", "extras"):
                for x in buffer.torch[name]:
                    x[t] = 0
            act_there(t)
            found = [x[t, :, :6] for name in ("sent", "extras") for x in buffer.torch[name]]
            assert_trees_equal(found, expected, rtol=1e-5, atol=1e-6)


SCRIPT = """
import gymnasium as gym
import numpy as np
from purerl import envs, make_a2c, random, samplers
from purerl.algos import A2CConfig

class Mine(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), float(action), False, False, {}

if __name__ == "__main__":
    scale = 2.0
    class Scaled(gym.RewardWrapper):
        def reward(self, reward):
            return scale * reward
    for make in (Mine, lambda: Scaled(Mine())):
        algo = make_a2c(envs.host(make).spec, A2CConfig(n_envs=2, n_steps=50, hidden=(8,)))
        with samplers.parallel(make, algo, 2, 50, random.key(0), n_workers=2) as feed:
            feed.publish(algo.init(random.key(0)))
            print(next(feed).reward.max().item())
"""


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_environments_of_a_script_reach_the_workers(tmp_path, start_method):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("n_workers=2", f"n_workers=2, start_method={start_method!r}"))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1.0", "2.0"]


def test_spawn_gives_them_too():
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=3, n_steps=5, hidden=(8,)))
    states = [algo.init(random.key(i)) for i in range(3)]
    spawned = samplers.parallel(Walk, algo, 3, 5, random.key(0), n_workers=1, start_method="spawn")
    for a, b in zip(collect(samplers.serial(Walk, algo, 3, 5, random.key(0)), states), collect(spawned, states), strict=True):
        assert_trees_equal(a, b)


@pytest.mark.parametrize("of", [samplers.serial, partial(samplers.parallel, n_workers=2)])
def test_buffered_is_one_update_behind(of):
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=4, n_steps=5, hidden=(8,)))
    states = [algo.init(random.key(i)) for i in range(6)]
    got = collect(samplers.buffered(Walk, algo, 4, 5, random.key(0), of=of), states)
    for a, b in zip(collect(samplers.serial(Walk, algo, 4, 5, random.key(0)), [states[0], *states[:-1]]), got, strict=True):
        assert_trees_equal(a, b)


def test_a_buffered_feed_keeps_what_was_published():
    """Whoever updates parameters in place may go on doing so."""
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=4, n_steps=5, hidden=(8,)))
    state = tree.copy(algo.init(random.key(0)))
    with samplers.buffered(Walk, algo, 4, 5, random.key(0), of=samplers.serial) as feed:
        feed.publish(state)
        for x in tree.leaves(state):
            x.zero_()
        batch = next(feed)
    ours = collect(samplers.serial(Walk, algo, 4, 5, random.key(0)), [algo.init(random.key(0))])[0]
    assert_trees_equal(batch, ours)


def test_publishing_does_not_touch_the_state():
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=4, n_steps=5, hidden=(8,)))
    state = algo.init(random.key(0))
    before = tree.copy(state)
    batches = collect(samplers.serial(Walk, algo, 4, 5, random.key(0)), [state, state])
    kept = tree.copy(batches[0])
    assert_trees_equal(state, before)
    assert not any(x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() for x, y in zip(*map(tree.leaves, batches)))
    assert_trees_equal(batches[0], kept)
