import subprocess
import sys
from functools import partial

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

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
    with pytest.raises(ValueError, match=r"^environment: 'Qwxyz' is not known; one of your own is my_module:MyEnv-v0$"):
        envs.make("Qwxyz")


def test_missing_mujoco(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mujoco" or "gymnasium.envs.mujoco" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    message = r"not installed \(.*\); install it with: pip install \"purerl\[mujoco\]\", or in a clone"
    with pytest.raises(ImportError, match=r"^environment: 'HalfCheetah-v5' needs a package that is " + message):
        envs.make("HalfCheetah-v5")


class Choosy(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, size):
        raise OSError(f"no file for {size}")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            CartPoleEnv(),
            r"^env: <CartPoleEnv.*> is an environment, but each of n_envs needs .*: give what makes them, lambda: CartPoleEnv",
        ),
        (gym.vector.SyncVectorEnv([CartPoleEnv]), r"^env: SyncVectorEnv.* is a VectorEnv, which samplers.native takes$"),
        (envs.make("CartPole-v1"), r"^env: CartPole-v1 is pure: fuse it with an algorithm, or take gym:CartPole-v1$"),
        (3, r"^env = 3 is not an id, a function that makes an environment, or a HostEnv$"),
        (None, r"^env = None is not an id"),
        (Choosy, r"^env: Choosy cannot make an environment: TypeError: .*'size'; functools.partial gives it arguments$"),
        (partial(Choosy, 3), r"^env: partial cannot make an environment: OSError: no file for 3$"),
        (dict, r"^env: dict made dict, not a gymnasium.Env$"),
        ("a:b:c", r"^environment: 'a:b:c' cannot be made without options: ValueError: "),
        ("gym:my env", r"^environment: 'my env' is no id such as CartPole-v1 or my_module:MyEnv-v0 \(Malformed"),
        (
            "ale_py:ALE/Pong-v5",
            r"^environment: 'ale_py:ALE/Pong-v5' is a raw Atari game; use ALE/Pong-v5, the game with the standard",
        ),
        ("BreakoutDeterministic-v4", r"^environment: 'BreakoutDeterministic-v4' is a raw Atari game; use ALE/Breakout-v5"),
        ("MsPacman-v4", r"^environment: 'MsPacman-v4' is (not known; did you mean|a raw Atari game; use) ALE/MsPacman-v5"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_is_no_environment_is_refused(env, message):
    with pytest.raises(ValueError, match=message):
        envs.host(env)


def test_options_that_are_not_taken_are_named():
    with pytest.raises(
        ValueError, match=r"^environment: 'CartPole-v1' cannot be made with the options \{'colour': 3\}: TypeError: .*colour"
    ):
        envs.make("CartPole-v1", colour=3)
    with pytest.raises(ValueError, match=r"made CartPoleEnv of one environment, not a gymnasium VectorEnv$"):
        envs.vector_host(lambda n: CartPoleEnv())


MUJOCO = """
import os, warnings
from purerl import envs, make_a2c, random, samplers
from purerl.algos import A2CConfig

if __name__ == "__main__":
    env = envs.make("HalfCheetah-v5")
    algo = make_a2c(env.spec, A2CConfig(n_envs=1, n_steps=3, hidden=(8,)))
    with samplers.parallel(env, algo, 1, 3, random.key(0)) as feed:
        feed.publish(algo.init(random.key(1)))
        next(feed)
    import mujoco
    broken = mujoco.MjModel.from_xml_string("<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>")
    data = mujoco.MjData(broken)
    data.qvel[:] = 1e30
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mujoco.mj_step(broken, data)
    print([str(w.message).split(":")[0] for w in caught], os.listdir("."))
"""


def test_mujoco_writes_no_file_into_the_working_folder(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "script.py").write_text(MUJOCO)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, cwd=folder)
    assert done.stdout == "['MuJoCo'] []\n", done.stderr


def test_a_name_without_its_version_is_the_newest_one():
    assert isinstance(envs.make("CartPole"), Env)
    assert envs.make("gym:CartPole").spec.id == "CartPole-v1"


def test_what_a_function_of_ones_own_makes():
    catch = envs.make("purerl.envs.catch:make", rows=4)
    assert isinstance(catch, Env)
    assert catch.spec.observation_space.shape == (4, 5)
    walk = envs.make("worlds:Walk")
    assert walk.spec.id == "worlds:Walk"
    assert walk.make().observation_space == walk.spec.observation_space
    for id, options, said in (
        ("purerl.envs.catch:make", {"rows": 1}, r"cannot be made: ValueError: a board of rows = 1"),
        ("worlds:Informed", {}, r"cannot be made: TypeError: .*missing 1 required positional argument: 'info'"),
        ("worlds:leaves", {"x": 1}, r"returned list, neither an Env nor a gymnasium.Env"),
        ("worlds:nothing", {}, r"is not known"),
    ):
        with pytest.raises(ValueError, match=f"^environment: '{id}' {said}"):
            envs.make(id, **options)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            lambda state, obs, reward, over, *_: (state, obs, reward, over, over),
            r"step returned 5 values, but \(state, obs, reward",
        ),
        (lambda state, obs, reward, over, *_: [state], r"step returned list, but \(state, obs, reward"),
        (
            lambda state, obs, reward, over, *_: (state.float(), obs, reward, over, over, {}),
            r"state that is float32 \[3\], but int32",
        ),
        (
            lambda state, obs, reward, over, *_: (state, obs[0], reward, over, over, {}),
            r"obs that is float32 \[5\], but float32 \[10, 5",
        ),
        (
            lambda state, obs, reward, over, *_: (state, obs, 1.0, over, over, {}),
            r"reward that is no tensor but 1.0, but float32 \[\]",
        ),
        (
            lambda state, obs, reward, over, *_: (state, obs, reward, over, over.float(), {}),
            r"truncated that is float32 \[\], but bool",
        ),
    ],
)
def test_a_pure_environment_is_looked_at(wrong, said):
    env = envs.make("bsuite/Catch-v0")
    envs.check(env)
    with pytest.raises(ValueError, match=f"^bsuite/Catch-v0: .*{said}"):
        envs.check(env._replace(step=lambda *args: wrong(*env.step(*args))))


@pytest.mark.parametrize("id", [*envs.PURE, *envs.MAKERS])
def test_every_pure_environment_is_as_the_record_has_it(id):
    envs.check(envs.make(id))


def test_a_module_of_ones_own_offers_what_it_registered():
    with pytest.raises(ValueError, match=r"'worlds:Foo-v0' is not known; did you mean .*worlds:Walk-v0"):
        envs.make("worlds:Foo-v0")
    with pytest.raises(ValueError, match=r"'Xyzzy-v0' is not known; one of your own is my_module:MyEnv-v0"):
        envs.make("Xyzzy-v0")
    with pytest.raises(ImportError, match=r"the module 'nowhere' is looked for in the working folder and on PYTHONPATH"):
        envs.make("nowhere:Foo-v0")
