import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from purerl import envs


@pytest.mark.parametrize("id", list(envs.PURE))
def test_vector_env_keeps_gymnasiums_contract(id):
    """What Gymnasium checks of an environment (spaces, seeding, determinism, types), on its vector interface."""
    vec = envs.to_gymnasium(envs.make(id), 3)
    assert isinstance(vec, gym.vector.VectorEnv)
    assert vec.observation_space == gym.vector.utils.batch_space(vec.single_observation_space, 3)
    first, info = vec.reset(seed=5)
    again, _ = vec.reset(seed=5)
    other, _ = vec.reset(seed=6)
    assert data_equivalence(first, again)
    assert not data_equivalence(first, other)
    assert info == {}
    assert vec.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP
    vec.action_space.seed(0)
    for _ in range(20):
        obs, reward, terminated, truncated, info = vec.step(vec.action_space.sample())
        assert obs in vec.observation_space
        assert obs.dtype == vec.observation_space.dtype
        assert reward.shape == terminated.shape == truncated.shape == (3,)
        assert terminated.dtype == truncated.dtype == np.bool_
        assert isinstance(info, dict)
    vec.close()


def test_wrappers_of_gymnasium_see_whole_episodes():
    vec = gym.wrappers.vector.RecordEpisodeStatistics(envs.to_gymnasium(envs.make("CartPole-v1"), 4))
    vec.reset(seed=0)
    returns = []
    for _ in range(300):
        _, _, _, _, info = vec.step(np.zeros(4, np.int64))
        returns += list(info["episode"]["r"][info["_episode"]]) if "episode" in info else []
    assert len(returns) > 20
    assert all(8 <= r <= 11 for r in returns)  # pushing one way always falls that soon


def test_autoreset_takes_a_step_of_its_own():
    vec = envs.to_gymnasium(envs.make("CartPole-v1"), 2)
    vec.reset(seed=0)
    for _ in range(12):
        obs, _, terminated, _, _ = vec.step(np.ones(2, np.int64))
        if terminated[0]:
            assert abs(obs[0, 2]) > 0.2  # the true last observation
            obs, reward, terminated, truncated, _ = vec.step(np.ones(2, np.int64))
            assert abs(obs[0]).max() <= 0.05
            assert reward[0] == 0
            assert not terminated[0]
            assert not truncated[0]
            return
    pytest.fail("no episode ended")


def test_misuse():
    with pytest.raises(ValueError, match=r"^num_envs = 0 is not at least 1$"):
        envs.to_gymnasium(envs.make("CartPole-v1"), 0)
    vec = envs.to_gymnasium(envs.make("CartPole-v1"), 2)
    with pytest.raises(gym.error.ResetNeeded):
        vec.step(np.zeros(2, np.int64))
    vec.reset(seed=0)
    with pytest.raises(ValueError, match=r"^actions: .* is not in MultiDiscrete\(\[2 2\]\)$"):
        vec.step(np.full(2, 7))
