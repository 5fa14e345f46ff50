"""What a batch says: resets, decorrelation, seeds, records."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from worlds import Walk

from purerl import envs, make_a2c, make_policy, nets, random, samplers, tree
from purerl.algos import A2CConfig
from purerl.episodes import averages, init_episodes, record_episodes


def collect(kind, make, n_batches, n_envs=4, n_steps=7, key=None, **options):
    algo = make_a2c(envs.host(make).spec, A2CConfig(n_envs=n_envs, n_steps=n_steps, hidden=(8,)))
    with kind(make, algo, n_envs, n_steps, random.key(0) if key is None else key, **options) as feed:
        feed.publish(algo.init(random.key(1)))
        return [next(feed) for _ in range(n_batches)]


def episodes_of(batches, column):
    """The rewards of each episode of one environment, read off the batches step by step."""
    found = [[]]
    for batch in batches:
        for t in range(len(batch.reward)):
            if batch.valid[t, column]:
                found[-1].append(batch.reward[t, column].item())
            if batch.terminated[t, column] or batch.truncated[t, column]:
                found.append([])
    return found[:-1]


@pytest.mark.parametrize("reset", ["mid", "wait"])
def test_every_observation_is_there_and_belongs_to_its_episode(reset):
    """Against the environments themselves, played with the batch's own actions."""
    batches = collect(samplers.serial, Walk, 6, reset=reset)
    keys = random.fold_in(random.key(0), 0)
    seeds = random.randint(keys, (4,), 0, 1 << 31)
    for b in range(4):
        env = Walk()
        obs, _ = env.reset(seed=int(seeds[b]))
        over = False
        for batch in batches:
            for t in range(7):
                np.testing.assert_array_equal(batch.inputs.obs[t, b].numpy(), obs)
                assert batch.valid[t, b] == (not over)
                if not over:
                    obs, reward, terminated, truncated, _ = env.step(int(batch.action[t, b]) + 1)
                    assert batch.reward[t, b] == np.float32(reward)
                    assert (batch.terminated[t, b], batch.truncated[t, b]) == (terminated, truncated)
                    over = terminated or truncated
                else:
                    assert batch.reward[t, b] == 0
                    if reset == "mid" or t == 0:
                        (obs, _), over = env.reset(), False
            np.testing.assert_array_equal(batch.last.obs[b].numpy(), obs)


def test_waiting_environments_begin_with_the_next_batch():
    batches = collect(samplers.serial, Walk, 6, reset="wait")
    for before, batch in zip([None, *batches], batches, strict=False):
        firsts = batch.inputs.first
        assert not firsts[2:].any()  # an episode begins at a batch's first step, or with the step that resets it
        if before is not None:
            waited = ~before.valid[-1] | before.terminated[-1] | before.truncated[-1]
            assert torch.equal(~batch.valid[0], waited)
            assert torch.equal(firsts[1], waited)


def test_the_policy_sees_what_it_did():
    first, second = collect(samplers.serial, Walk, 2)
    for batch in (first, second):
        followed = ~batch.inputs.first[1:]
        assert torch.equal(batch.inputs.prev_action[1:][followed], batch.action[:-1][followed])
        assert torch.equal(batch.inputs.prev_reward[1:], batch.reward[:-1])
        assert not batch.inputs.prev_action[batch.inputs.first].any()
    assert torch.equal(first.last.obs, second.inputs.obs[0])
    assert torch.equal(first.last.prev_action, second.inputs.prev_action[0])
    assert torch.equal(first.last.prev_reward, second.inputs.prev_reward[0])
    assert torch.equal(first.last.first, second.inputs.first[0])


def test_a_policy_with_memory_is_carried_from_batch_to_batch():
    """Its memory counts the steps since the episode began."""
    net = torch.nn.Linear(3, 3, device="meta")
    plain = make_policy(envs.host(Walk).spec, net)

    def act(params, inputs, carry, noise):
        action, extras, _ = plain.act(params, inputs, carry, noise)
        count = torch.where(inputs.first, 0.0, carry["count"]) + 1.0
        return action, extras.set("count", count), tree.map(lambda _: count, carry)

    policy = plain._replace(act=act, carry=lambda n: TensorDict(count=torch.zeros(n)))
    for kind in (samplers.serial, partial(samplers.central, n_workers=2)):
        with kind(Walk, policy, 5, 6, random.key(0)) as feed:
            feed.publish(nets.init(net, random.key(1)))
            batches = [next(feed) for _ in range(4)]
        expected = torch.zeros(5)
        for batch in batches:
            assert torch.equal(batch.carry["count"], expected)
            for t in range(6):
                expected = torch.where(batch.inputs.first[t], 0.0, expected) + 1.0
                assert torch.equal(batch.extras["count"][t], expected)


def test_environments_are_seeded_one_by_one():
    """The environments of another number of environments, or of another run, are the same ones."""
    few, many = collect(samplers.serial, Walk, 1, n_envs=2)[0], collect(samplers.serial, Walk, 1, n_envs=6)[0]
    again = collect(samplers.serial, Walk, 1, n_envs=2)[0]
    other = collect(samplers.serial, Walk, 1, n_envs=2, key=random.key(7))[0]
    assert torch.equal(few.inputs.obs[0], again.inputs.obs[0])
    assert not torch.equal(few.inputs.obs[0], other.inputs.obs[0])
    assert len(many.inputs.obs[0].unique(dim=0)) == 6


def test_decorrelation_takes_random_steps_first():
    make = partial(Walk, longest=1000)
    plain, random_start = (collect(samplers.serial, make, 1, n_envs=8, decorrelate=n)[0] for n in (0, 50))
    moved = (plain.inputs.obs[0] != random_start.inputs.obs[0]).any(-1)
    assert moved.sum() >= 6
    assert random_start.inputs.first[0].all()
    for kind in (partial(samplers.central, n_workers=2), lambda make, *args, **k: samplers.native(vectors(make), *args, **k)):
        for longest in (1000, 5):
            short = partial(Walk, longest=longest)
            a, b = (collect(x, short, 3, n_envs=8, decorrelate=50) for x in (samplers.serial, kind))
            for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
                assert torch.equal(x, y)


def vectors(make):
    return lambda n: gym.vector.SyncVectorEnv([make] * n)


@pytest.mark.parametrize("reset", ["mid", "wait"])
def test_records_of_episodes(reset):
    """Return, length, discounted return, rewards that are not zero, and infos, against a loop over the batches."""
    batches = collect(samplers.serial, Walk, 12, reset=reset, infos=("depth",))
    records = init_episodes(4, gamma=0.9, infos=("depth",))
    for batch in batches:
        records = record_episodes(records, batch)
    found = [episode for b in range(4) for episode in episodes_of(batches, b)]
    assert records.count == len(found) < 100
    means = averages(records)
    expected = {
        "Return": np.mean([sum(x) for x in found]),
        "Length": np.mean([len(x) for x in found]),
        "NonzeroRewards": np.mean([np.count_nonzero(x) for x in found]),
        "DiscountedReturn": np.mean([sum(0.9**i * r for i, r in enumerate(x)) for x in found]),
    }
    for name, value in expected.items():
        assert means[name].item() == pytest.approx(value, rel=1e-4, abs=1e-4), name
    ends = torch.stack([batch.episode["depth"] for batch in batches])
    assert means["depth"].item() == pytest.approx(ends[~ends.isnan()].mean().item(), rel=1e-4)
    assert (~ends.isnan()).sum() == len(found)


def test_an_info_that_is_not_there_is_named():
    with pytest.raises(
        samplers.EnvError, match=r"environment [0-3]: its info has no 'height' at the end of an episode; it has depth"
    ):
        collect(samplers.serial, Walk, 5, infos=("height",))


class Lives(gym.vector.VectorEnv):
    """One game of three lives of two steps each, a reward of 5 a step, clipped to 1: what our own vector environments tell."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self):
        self.num_envs, self.n = 1, 0
        self.single_observation_space, self.single_action_space = gym.spaces.Box(0, 99, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.n = 0
        return np.zeros((1, 1), np.float32), {}

    def step(self, actions):
        if self.n == 6:
            return *self.reset()[:1], np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), {}
        self.n += 1
        info = {envs.RAW_REWARD: np.full(1, 5.0), envs.GAME_OVER: np.array([self.n == 6])}
        return np.full((1, 1), self.n, np.float32), np.ones(1), np.array([self.n % 2 == 0]), np.zeros(1, bool), info


def test_lost_lives_end_episodes_but_no_games():
    algo = make_a2c(envs.vector_host(Lives()).spec, A2CConfig(n_envs=1, n_steps=14, hidden=(8,)))
    with samplers.native(Lives(), algo, 1, 14, random.key(0)) as feed:
        feed.publish(algo.init(random.key(1)))
        batch = next(feed)
    assert batch.inputs.obs[:8, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert batch.terminated[:7, 0].tolist() == [False, True, False, True, False, True, False]
    assert batch.valid[:8, 0].tolist() == [True] * 6 + [False, True]
    assert batch.inputs.first[:8, 0].tolist() == [True, False, True, False, True, False, False, True]
    records = record_episodes(init_episodes(1), batch)
    assert records.count == 2
    assert averages(records)["Return"] == 30.0
    assert batch.reward.max() == 1.0


class Chatty(gym.Env):
    """Episodes of five steps, whose infos happen to have names that others use."""

    observation_space, action_space = gym.spaces.Box(0, 99, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.n < 5, "stepped beyond its end"
        self.n += 1
        info = {"game_over": False, "raw_reward": 100.0, "lives": 3, "episode": {"r": 7.0}, "reward": 9.0, "game_end": False}
        return np.full(1, self.n, np.float32), 1.0, self.n == 5, False, info


@pytest.mark.parametrize("kind", ["serial", "parallel", "central", "alternating", "native"])
def test_infos_of_an_environments_own_mean_nothing(kind):
    workers = {} if kind in ("serial", "native") else {"n_workers": 2}
    make = vectors(Chatty) if kind == "native" else Chatty
    algo = make_a2c(envs.host(Chatty).spec, A2CConfig(n_envs=2, n_steps=18, hidden=(8,)))
    with samplers.KINDS[kind](make, algo, 2, 18, random.key(0), **workers) as feed:
        feed.publish(algo.init(random.key(1)))
        batch = next(feed)
    assert batch.inputs.obs[:, 0, 0].tolist() == [i % 6 for i in range(18)]
    records = record_episodes(init_episodes(2), batch)
    assert (records.count, averages(records)["Return"]) == (6, 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset": "never"}, r"^reset = 'never' is not one of mid, wait$"),
        ({"decorrelate": -1}, r"^decorrelate = -1 is not at least 0$"),
        ({"n_envs": 0}, r"^n_envs = 0 is not at least 1$"),
        ({"n_envs": random.key(0)}, r"^n_envs = tensor\(.*\) is not an int$"),
        ({"n_workers": 5}, r"^n_workers = 5 is not between 1 and n_envs = 4$"),
        ({"timeout": 0}, r"^timeout = 0 is not a number of seconds of at least 0.01$"),
        ({"restarts": -1}, r"^restarts = -1 is not at least 0$"),
        ({"start_method": "fork"}, r"^start_method = 'fork' is not one of forkserver, spawn$"),
        ({"n_workers": 2, "cores": [0]}, r"^cores = \[0\] does not name one core for each of 2 workers$"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_is_not_allowed_is_said_before_any_work(options, message):
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=4, n_steps=5, hidden=(8,)))
    shape = (options.pop("n_envs", 4), 5)
    with pytest.raises((ValueError, TypeError), match=message):
        samplers.parallel(Walk, algo, *shape, random.key(0), **options)


def test_vector_environments_that_cannot_be_used_are_refused():
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=4, n_steps=5, hidden=(8,)))
    same_step = gym.vector.AutoresetMode.SAME_STEP
    with pytest.raises(ValueError, match=r"autoreset_mode SameStep cannot be used, only NextStep"):
        samplers.native(lambda n: gym.vector.SyncVectorEnv([Walk] * n, autoreset_mode=same_step), algo, 4, 5, random.key(0))
    with pytest.raises(ValueError, match=r"has 3 environments, but n_envs asks for 4"):
        samplers.native(gym.vector.SyncVectorEnv([Walk] * 3), algo, 4, 5, random.key(0))
    with pytest.raises(ValueError, match=r"reset = 'wait' needs environments that are stepped one by one"):
        samplers.native(vectors(Walk), algo, 4, 5, random.key(0), reset="wait")
    with pytest.raises(ValueError, match=r"'HalfCheetah-v5' has no vector implementation"):
        samplers.native("HalfCheetah-v5", make_a2c(envs.make("HalfCheetah-v5").spec), 4, 5, random.key(0))
    with pytest.raises(ValueError, match=r"batch_size = 2 needs an environment with send and receive"):
        samplers.native(vectors(Walk), algo, 4, 5, random.key(0), batch_size=2)


def test_a_vector_environment_that_raises():
    class Broken(Walk):
        def step(self, action):
            raise ZeroDivisionError("the world ended")

    with pytest.raises(samplers.EnvError, match=r"environments 0 to 3: step raised ZeroDivisionError: the world ended"):
        collect(lambda make, *args: samplers.native(vectors(make), *args), Broken, 1)


def test_gymnasiums_own_vector_environment():
    algo = make_a2c(envs.make("gym:CartPole-v1").spec, A2CConfig(n_envs=3, n_steps=40, hidden=(8,)))
    with samplers.native("CartPole-v1", algo, 3, 40, random.key(0)) as feed:
        feed.publish(algo.init(random.key(1)))
        batch = next(feed)
    assert batch.terminated.any()
    assert torch.equal(~batch.valid[1:], (batch.terminated | batch.truncated)[:-1])
