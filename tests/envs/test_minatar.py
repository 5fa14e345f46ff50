"""The games against MinAtar's own, which are given the same random numbers."""

import logging
from typing import NamedTuple

import numpy as np
import pytest
import torch

logging.disable(logging.WARNING)  # minatar warns that it cannot draw without seaborn
from conftest import assert_trees_equal  # noqa: E402
from minatar import Environment  # noqa: E402

from purerl import autoreset, compile, envs, random, training, tree, vmap  # noqa: E402
from purerl.envs import minatar  # noqa: E402
from purerl.envs.minatar import asterix, breakout, freeway, seaquest, space_invaders  # noqa: E402

logging.disable(logging.NOTSET)


class Script:
    """A generator that gives the numbers of `[0, 1)` that it is told."""

    def __init__(self):
        self.numbers = []

    def rand(self, n=None):
        return self._next(n)

    def randint(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        return low + np.int64(self._next(size) * np.float32(high - low))

    def _next(self, n):
        taken = [np.float32(self.numbers.pop(0)) for _ in range(n or 1)]
        return np.array(taken) if n else taken[0]


class Game(NamedTuple):
    module: object
    env: object
    script: object  # from the numbers of one environment's noise, the numbers in the order in which the original takes them


GAMES = {
    "asterix": Game(asterix, asterix.ENV, list),
    "breakout": Game(breakout, breakout.ENV, lambda right: [0.75 if right else 0.25]),
    "freeway": Game(freeway, freeway.ENV, lambda speed: [*(abs(speed) - 0.5) / 5, *np.where(speed > 0, 0.75, 0.25)]),
    "seaquest": Game(seaquest, seaquest.ENV, list),
    "space_invaders": Game(space_invaders, space_invaders.ENV, lambda key: []),
}


def tell_apart(original):
    """Let enemies take the first three numbers and divers the next two, whether both enter or one of them."""
    spawn_enemy, spawn_diver = original._spawn_enemy, original._spawn_diver

    def enemy():
        numbers = list(original.random.numbers)
        spawn_enemy()
        original.random.numbers = numbers

    def diver():
        original.random.numbers = original.random.numbers[3:]
        spawn_diver()

    original._spawn_enemy, original._spawn_diver = enemy, diver


def compare(name, policy, n_envs=16, n_steps=500, immortal=False, prepare=lambda state, originals: None):
    """Play both step for step; immortals play on. Returns how many episodes ended, the sum of rewards, and the steepest ramp."""
    _, env, script = GAMES[name]
    rng = np.random.RandomState(0)
    noises = vmap(vmap(env.draw))(random.split(random.key(1), n_steps * n_envs).unflatten(0, (n_steps, n_envs)))
    originals = [Environment(name, sticky_action_prob=0.0) for _ in range(n_envs)]
    for original in originals:
        original.random, original.env.random = Script(), Script()
        if name == "seaquest":
            tell_apart(original.env)

    def reset(i, numbers):
        originals[i].env.random.numbers = script(numbers)
        originals[i].reset()
        return originals[i].state()

    state, obs = vmap(env.reset)(noises[0])
    seen = [reset(i, noises[0][i].numpy()) for i in range(n_envs)]
    done, ended, total = torch.zeros(n_envs, dtype=torch.bool), 0, 0.0
    steepest = 0
    np.testing.assert_array_equal(obs.numpy(), np.stack(seen).transpose(0, 3, 1, 2))
    prepare(state, originals)
    for t in range(1, n_steps):
        actions = policy(np.stack(seen), rng)
        state, obs, reward, terminated, truncated = autoreset.step(env, state, torch.from_numpy(actions), noises[t], done)
        assert not truncated.any()
        numbers, rewards, ends = noises[t].numpy(), np.zeros(n_envs), np.zeros(n_envs, bool)
        for i, original in enumerate(originals):
            if done[i]:
                seen[i] = reset(i, numbers[i])
                continue
            original.random.numbers, original.env.random.numbers = [0.5], script(numbers[i])
            rewards[i], ends[i] = original.act(actions[i])
            seen[i] = original.state()
            original.env.terminal = ends[i] and not immortal
        np.testing.assert_array_equal(obs.numpy(), np.stack(seen).transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(reward.numpy(), rewards)
        np.testing.assert_array_equal(terminated.numpy(), ends)
        steepest = max(steepest, *(original.env.difficulty_ramp() or 0 for original in originals))
        done, ended, total = terminated & (not immortal), ended + ends.sum(), total + rewards.sum()
    return ended, total, steepest


def at_random(obs, rng):
    return rng.randint(0, 6, len(obs))


def catch_the_ball(obs, rng):
    """Below the ball, but for a few moves at random."""
    ball, paddle = obs[..., 1].any(1).argmax(-1), obs[:, 9, :, 0].argmax(-1)
    action = np.where(ball < paddle, 1, np.where(ball > paddle, 3, 0))
    return np.where(rng.rand(len(obs)) < 0.05, rng.randint(0, 6, len(obs)), action)


def dodge_and_fire(obs, rng):
    """Away from below a bullet, else shoot where there are aliens above, else go to them."""
    cannon, aliens = obs[:, 9, :, 0].argmax(-1), obs[..., 1].any(1)
    each = np.arange(len(obs))
    danger = obs[each, 6:9, cannon, 5].any(-1)
    towards = np.where(aliens.argmax(-1) > cannon, 3, 1)
    away = np.where(cannon < 5, 3, 1)
    action = np.where(danger, away, np.where(aliens[each, cannon], 5, towards))
    return np.where(rng.rand(len(obs)) < 0.1, rng.randint(0, 6, len(obs)), action)


def test_breakout_is_the_originals():
    ended, _, _ = compare("breakout", at_random, n_steps=150)
    assert ended > 100
    _, total, _ = compare("breakout", catch_the_ball, n_steps=500)
    assert total / 16 > 31  # all bricks are broken, and new ones come


def test_freeway_is_the_originals():
    _, total, _ = compare("freeway", lambda obs, rng: rng.choice([2, 2, 2, 4, 0], len(obs)), n_steps=400)
    assert total > 15


def test_freeway_lasts_2501_steps():
    state, _ = freeway.reset(torch.ones(8, dtype=torch.int32))
    original = Environment("freeway")
    assert state[2] == original.env.terminate_timer == 2500
    state[2] = original.env.terminate_timer = 2
    for _ in range(3):
        state, _, _, over, _, _ = freeway.step(state, torch.tensor(0), torch.ones(8, dtype=torch.int32))
        assert over.item() == original.act(0)[1]
    assert over


def test_asterix_is_the_originals():
    ended, total, _ = compare("asterix", at_random, n_steps=300)
    assert ended > 30
    assert total > 30


def test_asterix_is_the_originals_at_its_hardest():
    ended, total, steepest = compare("asterix", at_random, n_envs=32, n_steps=1100, immortal=True)
    assert steepest == 9
    assert ended > 1000
    assert total > 500


def test_space_invaders_is_the_originals():
    ended, total, _ = compare("space_invaders", at_random, n_envs=32, n_steps=300)
    assert ended > 50
    assert total > 200
    _, total, _ = compare("space_invaders", dodge_and_fire, n_envs=16, n_steps=200)
    assert total > 200


def two_aliens(state, originals):
    """All but two are shot already, and this is the fifth block."""
    state[:, 2], state[:, 6] = 0b1100 << 18, 8
    for original in originals:
        original.env.alien_map[:] = 0
        original.env.alien_map[3, 4:6] = 1
        original.env.enemy_move_interval, original.env.ramp_index = 8, 4


def test_space_invaders_is_the_originals_when_blocks_follow_each_other():
    _, total, steepest = compare("space_invaders", dodge_and_fire, n_envs=32, n_steps=200, prepare=two_aliens)
    assert steepest >= 5
    assert total > 100


def test_seaquest_is_the_originals():
    ended, _, _ = compare("seaquest", at_random, n_envs=32, n_steps=200)
    assert ended > 50


def test_seaquest_is_the_originals_when_it_is_hard():
    ended, total, steepest = compare("seaquest", at_random, n_envs=64, n_steps=900, immortal=True)
    assert steepest > 10
    assert ended > 1000
    assert total > 200


def test_sticky_actions_repeat_the_last_one_as_the_original_does():
    env = envs.make("MinAtar/Breakout-v0", sticky_action_prob=0.5)
    original = Environment("breakout", sticky_action_prob=0.5)
    original.random, original.env.random = Script(), Script()
    noises = vmap(env.draw)(random.split(random.key(0), 30))
    state, obs = env.reset(tree.index(noises, 0))
    original.env.random.numbers = [0.75 if noises[0][0] else 0.25]
    original.reset()
    rng, stuck = np.random.RandomState(0), 0
    for t in range(1, 30):
        action, last, (right, u) = int(rng.choice([1, 3])), original.last_action, tree.index(noises, t)
        original.random.numbers = [float(u)]
        _, over = original.act(action)
        stuck += original.last_action == last != action
        state, obs, _, terminated, _, _ = env.step(state, torch.tensor(action), (right, u))
        np.testing.assert_array_equal(obs.numpy(), original.state().transpose(2, 0, 1))
        assert terminated.item() == over
        if over:
            break
    assert stuck


def play(env, n_envs=4, n_steps=40):
    """Observations and rewards of some steps."""
    noises = vmap(vmap(env.draw))(random.split(random.key(3), n_steps * n_envs).unflatten(0, (n_steps, n_envs)))
    actions = random.randint(random.key(4), (n_steps, n_envs), 0, int(env.spec.action_space.n))
    state, obs = vmap(env.reset)(tree.index(noises, 0))
    done, seen = torch.zeros(n_envs, dtype=torch.bool), [obs]
    for t in range(1, n_steps):
        state, obs, reward, ended, cut = autoreset.step(env, state, actions[t], tree.index(noises, t), done)
        done = ended | cut
        seen += [obs, reward, done]
    return seen


@pytest.mark.parametrize("game", list(minatar.GAMES))
def test_the_minimal_actions_are_the_originals(game):
    name = {"SpaceInvaders": "space_invaders"}.get(game, game.lower())
    original = Environment(name)
    assert list(minatar.GAMES[game][-1]) == original.minimal_action_set()
    few, all_ = envs.make(f"MinAtar/{game}"), envs.make(f"MinAtar/{game}-v0")
    assert few.spec.id == f"MinAtar/{game}-v1"
    assert few.spec.action_space.n == len(original.minimal_action_set())
    assert all_.spec.action_space.n == 6
    height, width, channels = original.state_shape()
    assert few.spec.observation_space.shape == all_.spec.observation_space.shape == (channels, height, width)
    assert few.spec.max_episode_steps is None
    noise = few.draw(random.key(0))
    for i, action in enumerate(original.minimal_action_set()):
        states = [env.reset(noise)[0] for env in (few, all_)]
        assert_trees_equal(few.step(states[0], torch.tensor(i), noise)[1], all_.step(states[1], torch.tensor(action), noise)[1])


@pytest.mark.parametrize("game", list(minatar.GAMES))
def test_mapped_is_one_by_one_and_nothing_is_written_into(game):
    env = envs.make(f"MinAtar/{game}-v0", sticky_action_prob=0.25)
    noises = vmap(env.draw)(random.split(random.key(5), 3))
    state, _ = vmap(env.reset)(noises)
    actions = torch.tensor([1, 2, 5])
    for _ in range(12):
        before = tree.copy((state, noises))
        stepped = vmap(env.step)(state, actions, noises)
        assert_trees_equal(before, (state, noises))
        alone = [env.step(tree.index(state, i), actions[i], tree.index(noises, i)) for i in range(3)]
        assert_trees_equal(list(stepped[:5]), list(tree.stack([list(x[:5]) for x in alone])))
        state = stepped[0]


def test_compiled_is_the_same():
    env = envs.make("MinAtar/Asterix-v1")
    noises = vmap(env.draw)(random.split(random.key(6), 8))
    state, _ = vmap(env.reset)(noises)
    step = compile(vmap(env.step))
    other = state
    for t in range(40):
        actions = random.randint(random.key(t), (8,), 0, 5)
        noises = vmap(env.draw)(random.split(random.key(100 + t), 8))
        state, *seen = vmap(env.step)(state, actions, noises)
        other, *found = step(other, actions, noises)
        assert_trees_equal(seen[:4], found[:4])


def test_the_options():
    assert_trees_equal(play(envs.make("MinAtar/Seaquest-v1")), play(envs.make("MinAtar/Seaquest", sticky_action_prob=0.1)))
    gymnax = envs.make("MinAtar/Freeway-v1", sticky_action_prob=0, difficulty_ramping=False, max_episode_steps=7)
    assert gymnax.spec.max_episode_steps == 7
    assert [bool(done.any()) for done in play(gymnax, n_steps=9)[3::3]] == [False] * 6 + [True, False]
    with pytest.raises(ValueError, match=r"'MinAtar/Breakout-v1' cannot be made with the options \{'colour': 3\}: .*'colour'"):
        envs.make("MinAtar/Breakout-v1", colour=3)
    with pytest.raises(ValueError, match=r"sticky_action_prob = 2 is not in \[0, 1\]"):
        envs.make("MinAtar/Breakout-v1", sticky_action_prob=2)
    with pytest.raises(ValueError, match=r"max_episode_steps = 0 is not at least 1"):
        envs.make("MinAtar/Breakout-v1", max_episode_steps=0)
    with pytest.raises(ValueError, match=r"'MinAtar/Brekout-v1' is not known; did you mean MinAtar/Breakout-v1"):
        envs.make("MinAtar/Brekout-v1")


def test_a_run_keeps_the_options(tmp_path):
    options = {"sticky_action_prob": 0, "difficulty_ramping": False, "max_episode_steps": 1000}
    run = training.plan("ppo", "MinAtar/Asterix", 1, 1024, {}, env_options=options)
    training.prepare(tmp_path / "run", run)
    _, env = training.build(training.load_run(tmp_path / "run"))
    assert env.spec == envs.make("MinAtar/Asterix-v1", **options).spec
    assert_trees_equal(play(env), play(envs.make("MinAtar/Asterix-v1", **options)))


@pytest.mark.parametrize("module", [asterix, space_invaders, seaquest])
def test_without_the_ramp_it_stays_as_hard(module):
    hard, steady = [play(module.game(ramp), n_envs=8, n_steps=30) for ramp in (module.ramp, module.steady)]
    assert_trees_equal(hard, steady)  # it starts the same
    numbers = [torch.tensor(x) for x in (9, 5, -1, 1)[: {asterix: 4, space_invaders: 1, seaquest: 3}[module]]]
    steady_numbers = module.steady(*numbers)
    assert [*(steady_numbers if isinstance(steady_numbers, tuple) else [steady_numbers])] == numbers


def test_it_is_drawn_in_colours_of_its_own():
    env = envs.make("MinAtar/Seaquest-v1")
    obs = torch.zeros(10, 10, 10)
    obs[torch.arange(10), torch.arange(10), 0] = 1
    picture = env.render(obs)
    assert picture.shape == (160, 160, 3)
    assert picture.dtype == torch.uint8
    assert len({tuple(picture[16 * i + 8, 8].tolist()) for i in range(10)} | {(0, 0, 0)}) == 11
    assert not picture[:, 16:].any()
    assert torch.equal(picture[0, 0], picture[15, 15])
