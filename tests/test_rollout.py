import pytest
import torch
from conftest import assert_trees_equal

from purerl import envs, fuse, make_a2c, make_ppo, random, rollout
from purerl.algos import A2CConfig, PPOConfig
from purerl.envs import probes
from purerl.rollout import init_actors


def collect(env, n_envs=3, n_steps=40, seed=0):
    algo = make_a2c(env.spec, A2CConfig(n_envs=n_envs, n_steps=n_steps))
    state = algo.init(random.key(seed))
    actors = init_actors(algo, env, n_envs, random.key(seed + 1))
    return algo, state, actors, rollout(algo, env, state, actors, n_steps, random.key(seed + 2))


def test_batch_is_consistent_and_autoresets_next_step():
    env = envs.make("CartPole-v1")
    _, _, _, (after, batch) = collect(env)
    done = batch.terminated | batch.truncated
    assert done.any()
    assert torch.equal(~batch.valid[1:], done[:-1])
    assert torch.equal(batch.inputs.first[1:], ~batch.valid[:-1])
    assert (batch.reward[~batch.valid] == 0).all()
    assert not (done & ~batch.valid).any()
    # every valid step is one step of the environment from the observation before it
    for t in range(39):
        for b in range(3):
            if batch.valid[t, b]:
                _, obs, *_ = envs.PURE["CartPole-v1"].step(batch.inputs.obs[t, b], batch.action[t, b], None)
                torch.testing.assert_close(obs, batch.inputs.obs[t + 1, b])
            else:
                assert batch.inputs.obs[t + 1, b].abs().max() <= 0.05
                assert batch.inputs.prev_reward[t + 1, b] == 0
                assert batch.inputs.prev_action[t + 1, b] == 0
    assert torch.equal(batch.last.obs, after.inputs.obs)
    assert torch.equal(batch.inputs.prev_reward[1:], batch.reward[:-1])


def test_fragments_join():
    """Two rollouts of 5 go on where the first stops."""
    env = envs.pure(probes.ENDLESS)
    algo, state, _, (after, first) = collect(env, 2, 5)
    _, second = rollout(algo, env, state, after, 5, random.key(9))
    assert torch.equal(first.last.obs, second.inputs.obs[0])
    assert first.truncated[4].all()
    assert not second.valid[0].any()
    assert second.inputs.first[1].all()


def test_fuse_takes_its_sizes_from_the_algorithm_or_the_call():
    env = envs.make("CartPole-v1")
    algo = make_ppo(env.spec, PPOConfig(n_envs=2, n_steps=8))
    for sizes, n in (({}, 16), ({"n_envs": 4, "n_steps": 4}, 16)):
        init, step = fuse(algo, env, **sizes)
        state, _ = step(init(random.key(0)))
        assert state.algo.steps == n


def test_fuse_takes_the_pure_environment_that_the_algorithm_is_for():
    algo = make_ppo(envs.make("CartPole-v1").spec)
    with pytest.raises(ValueError, match=r"^Acrobot-v1: observation_space is .*, but the algorithm was made for"):
        fuse(algo, envs.make("Acrobot-v1"))
    with pytest.raises(
        ValueError, match=r"^fuse: HostEnv is no pure environment \(`Env`\); samplers collect from those of Gymnasium$"
    ):
        fuse(algo, envs.make("gym:CartPole-v1"))


def test_same_key_same_batch():
    env = envs.make("Acrobot-v1")
    assert_trees_equal(collect(env)[3], collect(env)[3])
