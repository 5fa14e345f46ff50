import math
import re
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from conftest import assert_trees_equal, peak_growth
from tensordict import TensorDict

from purerl import Batch, EnvSpec, Inputs, SpentError, envs, make_policy, nets, random, replay, rollout, tree, vmap
from purerl.rollout import init_actors
from purerl.spaces import blank_inputs
from purerl.transforms import shapes

README = Path(__file__).parents[2] / "README.md"
MAKERS = [replay.make_uniform, replay.make_prioritized]
ENV = envs.make("CartPole-v1")
NET = nets.ActorCritic(ENV.spec.observation_space, ENV.spec.action_space, (8,), "tanh", shared=False)
ALPHA, BETA, GAMMA = torch.tensor(0.6), torch.tensor(0.4), torch.tensor(0.99)


def batches(n, n_envs=4, n_steps=16):
    policy = make_policy(ENV.spec, NET)
    params, actors = policy.init(random.key(0)), init_actors(policy, ENV, n_envs, random.key(1))
    for key in random.split(random.key(2), n):
        actors, batch = rollout(policy, ENV, params, actors, n_steps, key)
        yield batch


def nbytes(tree_):
    return sum(x.nbytes for x in tree.leaves(tree_))


@pytest.mark.torch_modules
@pytest.mark.parametrize("maker", ["make_uniform", "make_prioritized"])
def test_the_readmes_replay_runs(maker, capsys):
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "replay.make_uniform" in code]
    exec(code.replace("make_uniform", maker), {"__name__": "page"})
    shape, size = re.match(r"torch.Size\(\[(\d+)\]\) (\d+)", capsys.readouterr().out).groups()
    assert (int(shape), 2300 < int(size) < 2560) == (256, True)


@pytest.mark.parametrize("make", MAKERS)
def test_a_sample_holds_what_was_done(make):
    memory, state = make(ENV.spec, 1000, 4, n_step=1), None
    done = []
    for batch in batches(4):
        state = memory.add(memory.init(None) if state is None else state, batch, ALPHA)
        done.append(batch)
    sample = memory.sample(state, random.key(0), 300, GAMMA, BETA)
    obs = torch.cat([b.inputs.obs for b in done])
    wanted = {}
    action, reward, terminated, valid = [
        torch.cat([getattr(b, x) for b in done]) for x in ("action", "reward", "terminated", "valid")
    ]
    for t in range(len(obs) - 1):
        for b in range(4):
            if valid[t, b]:
                gone_on = 0.99 * (not terminated[t, b])
                wanted[tuple(obs[t, b].tolist())] = (int(action[t, b]), float(reward[t, b]), gone_on, obs[t + 1, b].tolist())
    assert int(memory.size(state)) == len(wanted)
    it = sample.transitions
    for i in range(300):
        action_, reward_, discount, next_obs = wanted[tuple(it.obs[i].tolist())]
        assert (int(it.action[i]), float(it.reward[i]), it.next_obs[i].tolist()) == (action_, reward_, next_obs)
        assert math.isclose(float(it.discount[i]), discount, rel_tol=1e-6)
    assert (sample.weights == 1).all()  # they all have the first priority
    state = memory.update(state, sample.rows, torch.linspace(-1, 1, 300), ALPHA)
    assert int(memory.size(state)) == len(wanted)
    assert memory.sample(state, random.key(1), 300, GAMMA, BETA).weights.max() == 1


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_not_donated_is_left_alone(make):
    memory = make(ENV.spec, 100, 4)
    first, second = batches(2)
    state, kept = memory.init(None), tree.copy((first, second))
    small = {name: x.clone() for name, x in small_of(state)}
    after = memory.add(state, first, ALPHA)
    assert_trees_equal(dict(small_of(state)), small)
    with pytest.raises(SpentError):
        memory.add(state, first, ALPHA)
    state = memory.add(after, second, ALPHA)
    before = [x.clone() for x in tree.leaves(state)]
    sample = memory.sample(state, random.key(0), 8, GAMMA, BETA)
    memory.size(state)
    assert_trees_equal(tree.leaves(state), before)
    rows, errors = sample.rows.clone(), torch.ones(8)
    memory.update(state, sample.rows, errors, ALPHA)
    assert torch.equal(sample.rows, rows)
    assert torch.equal(errors, torch.ones(8))
    assert_trees_equal((first, second), kept)


def small_of(state):
    """What is not donated, with the names that a state's tensors have."""
    marks = tree.donated(tree.structure(state))
    return [(str(i), x) for i, (x, large) in enumerate(zip(tree.leaves(state), marks, strict=True)) if not large]


@pytest.mark.parametrize("make", MAKERS)
def test_what_does_not_fit_is_said(make):
    with pytest.raises(ValueError, match=r"capacity = 12 is not more than n_step \* n_envs = 3 \* 4"):
        make(ENV.spec, 12, 4, n_step=3)
    with pytest.raises(ValueError, match="capacity = 3000000000 takes 3000000004 rows, but a replay has at most 2147483647"):
        make(ENV.spec, 3_000_000_000, 4)
    for n_envs, n_step, said in ((0, 1, "n_envs = 0"), (4, 0, "n_step = 0"), (4, -1, "n_step = -1"), (4.0, 1, "n_envs = 4.0")):
        with pytest.raises(ValueError, match=f"^{said} is not an integer at least 1$"):
            make(ENV.spec, 40, n_envs, n_step)
    with pytest.raises(ValueError, match=r"^spec: Env is not an environment's spec"):
        make(ENV, 40, 4)
    with pytest.raises(ValueError, match=r"^frames\(4\): observations are .*, not stacks of images \[4, H, W\]$"):
        make(ENV.spec, 40, 4, observations=replay.frames(4))
    memory = make(ENV.spec, 40, 4)
    with pytest.raises(ValueError, match="a batch of 16 steps is too long for a replay that takes 10 at once"):
        memory.add(memory.init(None), next(batches(1)), ALPHA)
    with pytest.raises(ValueError, match="the batch has 2 environments, but the replay was made for 4"):
        memory.add(memory.init(None), next(batches(1, n_envs=2, n_steps=4)), ALPHA)


@pytest.mark.parametrize("make", MAKERS)
def test_lanes_take_as_many_times_the_memory_of_one(make):
    memory = make(ENV.spec, 1000, 4)
    one, lanes = shapes(memory.init, None), vmap(lambda _: memory.init(None))(torch.zeros(5))
    assert nbytes(lanes) == 5 * nbytes(one)
    assert all(x.is_contiguous() for x in tree.leaves(lanes))
    assert len({x.data_ptr() for x in tree.leaves(lanes)}) == len(tree.leaves(lanes))


@pytest.mark.parametrize("make", MAKERS)
def test_a_million_atari_transitions_take_less_than_8_gb(make):
    pytest.importorskip("ale_py")
    spec = envs.make("ALE/Breakout-v5").spec
    assert 7e9 < nbytes(shapes(make(spec, 1_000_000, 8, 3, replay.frames(4)).init, None)) <= 7.5e9


def test_a_full_atari_replay_is_no_larger_than_that():
    """Resident, at a fiftieth of the size: with whatever adding, sampling and writing take besides."""
    n_envs, n_steps = 8, 125
    images = gym.spaces.Box(0, 255, (4, 84, 84), "uint8")
    spec = EnvSpec("ALE/Any-v5", images, gym.spaces.Discrete(4))
    memory = replay.make_prioritized(spec, 20_000, n_envs, 3, replay.frames(4))
    blank = tree.map(lambda x: x.expand(n_steps, *x.shape).clone(), blank_inputs(spec, n_envs))
    zeros = torch.zeros(n_steps, n_envs)
    none, never = TensorDict(), zeros.bool()
    batch = Batch(blank, zeros.long(), zeros, never, never, ~never, none, none, tree.index(blank, -1), none)

    def fill():
        state = memory.init(None)
        for key in random.split(random.key(0), 21):
            state = memory.add(state, batch, ALPHA)
            sample = memory.sample(state, key, 32, GAMMA, BETA)
            state = memory.update(state, sample.rows, torch.ones(32), ALPHA)
        return state

    grown, state = peak_growth(fill)
    assert int(memory.size(state)) > 19_000
    assert 0.95 * nbytes(state) < grown < 1.1 * 7.5e9 / 50


def test_nested_observations_and_actions():
    box = gym.spaces.Box(-1, 1, (2,))
    spec = EnvSpec("nested", gym.spaces.Dict(x=box, y=gym.spaces.Dict(z=box)), gym.spaces.Dict(a=gym.spaces.Discrete(3), b=box))
    plain, chained = replay.make_prioritized(spec, 60, 2, n_step=2), replay.make_uniform_sequences(spec, 60, 2, 5)
    states, rows = [plain.init(None), chained.init(None)], torch.arange(20).reshape(10, 2)
    inputs = blank_inputs(spec, 2)
    for t in range(0, 20, 10):
        x = torch.stack([t + rows / 2, -t - rows / 2], -1)
        seen = Inputs(
            obs=TensorDict(x=x, y=TensorDict(z=2 * x)),
            prev_action=TensorDict(a=rows * 0, b=x * 0),
            prev_reward=rows * 0.0,
            first=rows + t < 2,
        )
        no = torch.zeros(10, 2, dtype=torch.bool)
        done = (TensorDict(a=rows % 3, b=3 * x), rows.float(), no, no, ~no)
        none = TensorDict()
        batch = Batch(seen, *done, extras=none, carry=none, last=inputs, episode=none)
        states = [plain.add(states[0], batch, ALPHA), chained.add(states[1], batch, ALPHA)]
    it = plain.sample(states[0], random.key(0), 16, GAMMA, BETA).transitions
    assert torch.equal(it.obs["y", "z"], 2 * it.obs["x"])
    assert torch.equal(it.action["b"], 3 * it.obs["x"])
    drawn = chained.sample(states[1], random.key(0), 16, BETA).sequences
    assert drawn.obs["y", "z"].shape == drawn.action["b"].shape == (5, 16, 2)
    assert torch.equal(drawn.action["b"], 3 * drawn.obs["x"])
    assert torch.equal(drawn.prev_action["b"][1:], drawn.action["b"][:-1])
    assert torch.equal(drawn.prev_action["a"][1:], drawn.action["a"][:-1])
