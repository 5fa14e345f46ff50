import sys

import pytest

from purerl import envs
from purerl.base import Env


def test_names():
    assert isinstance(envs.make("CartPole-v1"), Env)
    host = envs.make("gym:CartPole-v1")
    assert isinstance(host, envs.HostEnv)
    assert host.spec.max_episode_steps == 500


def test_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r"^environment: 'CartPole-v7' is not known; did you mean CartPole-v1 or CartPole-v0.*\?$"):
        envs.make("CartPole-v7")
    with pytest.raises(ValueError, match=r"^environment: 'Qwxyz' is not known$"):
        envs.make("Qwxyz")


def test_missing_mujoco(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mujoco" or "gymnasium.envs.mujoco" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    message = r"not installed \(.*\); install it with: pip install \"purerl\[mujoco\]\"$"
    with pytest.raises(ImportError, match=r"^environment: 'HalfCheetah-v5' needs a package that is " + message):
        envs.make("HalfCheetah-v5")
