"""Environments and feeds as bytes, from which they go on as if nothing had happened."""

import os
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from conftest import assert_trees_equal
from gymnasium.utils import EzPickle
from worlds import Drawing, Walk

from purerl import A2CConfig, envs, make_a2c, random, samplers, tree, vmap
from purerl.samplers import EnvError, WorkerError, saving

gym.register_envs(ale_py)


def game():
    return gym.make("ALE/Breakout-v5", frameskip=4, repeat_action_probability=0.25)


@pytest.mark.parametrize("make", [*map(partial(partial, gym.make), ["CartPole-v1", "HalfCheetah-v5", "Blackjack-v1"]), game])
def test_a_copy_goes_on_as_the_environment_does(make):
    """With its time limit, its generator, and what its simulator knows."""
    env = make()
    env.reset(seed=3)
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(150)]
    saving._play(env, actions[:20])
    copy = saving.loads(saving.dumps(env))
    np.testing.assert_equal(saving._play(copy, actions[20:], np.inf), saving._play(env, actions[20:], np.inf))


class Anew(Walk, EzPickle):
    """What its own pickle would forget."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        EzPickle.__init__(self, **kwargs)


class Locked(Walk):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Forgetful(Walk):
    def __getstate__(self):
        return {**self.__dict__, "x": np.zeros(3)}


class Shared(Walk):
    """Its state is the process's."""

    x = property(lambda self: WORLD[0], lambda self, x: WORLD.__setitem__(0, x))


WORLD = [np.zeros(3)]


class Deadly(Walk):
    def __getstate__(self):
        os._exit(1)


class Endless(Walk):
    def __getstate__(self):
        time.sleep(1000)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Walk, ""),
        (Drawing, ""),
        (Anew, ""),
        (Locked, "TypeError: cannot pickle '_thread.lock' object"),
        (Forgetful, "a copy of one does not go on as it does"),
        (Shared, "a copy of one does not go on as it does"),
        (Deadly, "a process that tried it died"),
        (Endless, "to try it took more than 0.7 s"),
        (partial(Walk, longest=0), "ValueError: low >= high"),
    ],
)
def test_why_an_environment_cannot_be_saved(make, why, monkeypatch, capfd):
    monkeypatch.setattr(saving, "PATIENCE", 30.0 if "took" not in why else 0.7)
    state = np.random.get_state()[1].copy()
    assert saving.obstacle(envs.HostEnv(envs.host(Walk).spec, make), "parallel", 4) == why
    assert np.array_equal(np.random.get_state()[1], state)
    assert capfd.readouterr() == ("", "")


class Starting(Walk):
    """Starts a process, which it does not end."""

    def __init__(self, note):
        super().__init__()
        note.write_text(str(subprocess.Popen(["sleep", "1000"]).pid))


def test_what_a_trial_starts_ends_with_it(tmp_path):
    assert saving.obstacle(envs.HostEnv(envs.host(Walk).spec, partial(Starting, tmp_path / "note")), "serial", 4) == ""
    stat = Path("/proc") / (tmp_path / "note").read_text() / "stat"
    deadline = time.monotonic() + 10
    while stat.exists() and ") Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not stat.exists() or ") Z " in stat.read_text()


def test_why_others_cannot_be_saved(monkeypatch):
    host = envs.host("gym:CartPole-v1")
    assert saving.obstacle(host, "native", 4) == ""
    assert saving.obstacle(host, "buffered", 4) == "the next batch is collected while the run learns from the last one"
    assert saving.obstacle(envs.make("ALE/Pong-v5"), "native", 4) == "TypeError: cannot pickle 'ALEVectorInterface' object"
    monkeypatch.setattr(saving, "MOST", 5_000)
    assert saving.obstacle(host, "serial", 1) == ""
    assert saving.obstacle(host, "serial", 4) == "one of 4 takes 0.0 MB"


SERIAL, OTHERS = samplers.serial, [partial(samplers.parallel, n_workers=2), partial(samplers.parallel, n_workers=3)]


def fed(host, arrange, algo, states, key, **options):
    feed = arrange(host, algo, 3, 7, key, **options)
    feed.publish(states)
    return feed


@pytest.mark.parametrize(
    ("make", "arranged", "options"),
    [
        (partial(Walk, "nested"), [SERIAL, *OTHERS], {"reset": "wait"}),
        (Drawing, [OTHERS[0], SERIAL, OTHERS[1]], {}),
        (
            Walk,
            [partial(samplers.central, n_workers=2), partial(samplers.alternating, n_workers=2), SERIAL],
            {"decorrelate": 5, "infos": ("depth",)},
        ),
    ],
)
def test_a_feed_goes_on_in_another_arrangement(make, arranged, options):
    """Two seeds, saved twice on the way: the batches are those of one feed."""
    host, keys = envs.host(make), random.split(random.key(1), 2)
    algo = make_a2c(host.spec, A2CConfig(n_envs=3, n_steps=7, hidden=(8,)))
    states = vmap(algo.init)(keys)
    with fed(host, SERIAL, algo, states, keys, **options) as feed:
        whole = [next(feed) for _ in range(25)]
    parts, saved = [], None
    for arrange, n in zip(arranged, (2, 20, 3), strict=True):
        with fed(host, arrange, algo, states, keys, **options) as feed:
            if saved is not None:
                feed.restore(saved)
            parts += [next(feed) for _ in range(n)]
            saved = feed.save()
            if len(parts) < 25:
                next(feed)  # which nobody sees
    for x, y in zip(whole, parts, strict=True):
        assert_trees_equal(tree.leaves(x), tree.leaves(y))


def test_a_vector_environment_and_a_feed_that_has_not_begun():
    host, key = envs.host("gym:CartPole-v1"), random.key(1)
    algo = make_a2c(host.spec, A2CConfig(n_envs=3, n_steps=7, hidden=(8,)))
    state = algo.init(key)
    with fed(host, samplers.native, algo, state, key) as feed:
        begin = feed.save()
        whole = [next(feed) for _ in range(2)]
        saved = feed.save()
        whole += [next(feed) for _ in range(20)]
    with fed(host, samplers.native, algo, state, key) as feed:
        feed.restore(begin)
        parts = [next(feed) for _ in range(2)]
        feed.restore(saved)
        parts += [next(feed) for _ in range(20)]
    for x, y in zip(whole, parts, strict=True):
        assert_trees_equal(tree.leaves(x), tree.leaves(y))
    with pytest.raises(RuntimeError, match="feed: it is closed"):
        feed.save()


@pytest.mark.parametrize("arrange", [SERIAL, OTHERS[0]])
def test_a_feed_that_cannot_be_saved_says_so_and_goes_on(arrange):
    host, key = envs.host(Locked), random.key(1)
    algo = make_a2c(host.spec, A2CConfig(n_envs=3, n_steps=7, hidden=(8,)))
    with fed(host, arrange, algo, algo.init(key), key) as feed:
        next(feed)
        with pytest.raises(EnvError, match="environment 0: its saving raised TypeError: cannot pickle"):
            feed.save()
        next(feed)
    with fed(host, samplers.buffered, algo, algo.init(key), key, of=samplers.serial) as feed:
        next(feed)
        with pytest.raises(EnvError, match="a buffered feed cannot be saved"):
            feed.save()


def test_a_worker_that_dies_of_it_is_replaced_with_the_next_batch():
    host, key = envs.host(Deadly), random.key(1)
    algo = make_a2c(host.spec, A2CConfig(n_envs=3, n_steps=7, hidden=(8,)))
    with fed(host, OTHERS[0], algo, algo.init(key), key) as feed:
        next(feed)
        with pytest.raises(WorkerError, match="ended with exit code 1"):
            feed.save()
        with pytest.warns(UserWarning, match="it is replaced, a fragment is lost"):
            assert next(feed).reward.shape == (7, 3)
        next(feed)


def test_what_cannot_be_restored_is_named():
    host, key = envs.host(Walk), random.key(1)
    algo = make_a2c(host.spec, A2CConfig(n_envs=3, n_steps=7, hidden=(8,)))
    with fed(host, SERIAL, algo, algo.init(key), key) as feed:
        next(feed)
        saved = feed.save()
    gone = saved.replace(b"worlds", b"wurlds")
    for arrange in (SERIAL, OTHERS[0]):
        feed = fed(host, arrange, algo, algo.init(key), key)
        with pytest.raises(EnvError, match="environment 0: its restoring raised ModuleNotFoundError: No module named 'wurlds'"):
            feed.restore(gone)
        with pytest.raises(RuntimeError, match="feed: it is closed"):
            next(feed)
