import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from purerl import envs, make_ppo, random
from purerl.evaluate import record_video


class NoDisplay(CartPoleEnv):
    def render(self):
        raise OSError("no display found")


def test_video_where_nothing_can_be_drawn(tmp_path):
    gym.register("NoDisplay-v0", NoDisplay)
    env = envs.make("NoDisplay-v0")
    algo = make_ppo(env.spec)
    with pytest.raises(OSError, match=r"video: NoDisplay-v0 cannot be drawn \(no display found\)"):
        record_video(algo, env, algo.init(random.key(0)), str(tmp_path / "v.gif"), 0)
