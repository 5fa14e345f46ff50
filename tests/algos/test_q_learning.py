"""DQN and its variants, C51, QR-DQN, Rainbow, PQN: purity, transforms, probes with known values, a slow reference."""

import dataclasses

import gymnasium as gym
import pytest
import torch
from conftest import assert_trees_equal
from tensordict import TensorDict
from torch import nn

from purerl import SpentError, algos, compile, envs, fuse, nets, random, tree, vmap
from purerl.algos import DQNConfig, make_dqn
from purerl.algos import q_learning as ql
from purerl.base import Env, EnvSpec
from purerl.envs import probes
from purerl.rollout import init_actors, rollout
from purerl.spaces import blank_inputs
from purerl.transforms import shapes

SMALL = {"n_envs": 2, "n_steps": 4, "capacity": 64, "batch_size": 8, "replay_ratio": 2.0, "learning_starts": 16, "hidden": (16, 16)}
OPTIONS = {"double": True, "dueling": True, "n_step": 3, "prioritized": True, "loss": "huber", "noisy": True, "tau": 0.1}
VARIANTS = {
    "dqn": {},
    "dqn options": OPTIONS,
    "c51": {"v_min": -2.0, "v_max": 6.0, "n_atoms": 21},
    "qrdqn": {"n_quantiles": 9},
    "rainbow": {"v_min": -2.0, "v_max": 6.0, "n_atoms": 21},
    "pqn": {},
}


def make(variant, spec, **config):
    name = variant.split()[0]
    base = {"n_envs": 2, "n_steps": 4, "hidden": (16, 16), "n_minibatches": 2, "epochs": 2} if name == "pqn" else SMALL
    default = algos.default_config(name, spec)
    return algos.make(name, spec, dataclasses.replace(default, **{**base, **VARIANTS[variant], **config}))


def steps(step, state, n):
    for _ in range(n):
        state, info = step(state)
    return state, info


def _probe():
    """Three tasks in one, told by the observation, each with values that are known for a discount of 0.8.

    A: one step; the action that is right pays 1. B: two steps, and 1 at the end. C: 1 a step for ever, cut after three steps.
    """
    never = torch.zeros((), dtype=torch.bool)

    def reset(noise):
        kind = (noise * 3).long().clamp(max=2)
        state = torch.stack([kind.float(), torch.zeros(()), torch.where((noise * 30) % 1 < 0.5, -1.0, 1.0)])
        return state, obs(state)

    def obs(state):
        return torch.cat([(state[0] == torch.arange(3.0)).float(), (state[1] == torch.arange(2.0)).float(), state[2:]])

    def step(state, action, noise):
        kind, t, side = state.unbind(-1)
        right = ((action == 1) == (side > 0)).float()
        reward = torch.where(kind == 0, right, torch.where(kind == 1, t, 1.0))
        terminated = (kind == 0) | ((kind == 1) & (t == 1))
        state = torch.stack([kind, torch.where(kind == 1, 1.0, 0.0), side])
        return state, obs(state), reward, terminated, never.clone(), {}

    spec = EnvSpec("probe/three", gym.spaces.Box(-1.0, 1.0, (6,)), gym.spaces.Discrete(2), 3)
    return envs.pure(Env(spec, reset, step, draw=random.uniform))


LEARNING = {
    "lr": 3e-3,
    "gamma": 0.8,
    "total_steps": 100_000,
    "n_envs": 8,
    "hidden": (32, 32),
    "epsilon_end": 1.0,
    "epsilon_start": 1.0,
}
MEMORY = {
    "n_steps": 4,
    "capacity": 2000,
    "batch_size": 64,
    "replay_ratio": 8.0,
    "target_every": 5,
    "tau": 0.5,
    "learning_starts": 64,
}
FRESH = {"n_steps": 16, "lr_schedule": "constant", "epochs": 2, "n_minibatches": 2}


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_lanes_are_the_lone_runs_and_reach_known_values(variant):
    """Compiled and mapped against lone eager runs; compiled once; the inputs, but for what is donated, are left alone; and after
    some hundred steps it values the probe's states, by actions that are random throughout, as the best ones."""
    env = _probe()
    algo = make(variant, env.spec, **{**LEARNING, **(FRESH if variant == "pqn" else MEMORY)})
    init, step = fuse(algo, env)
    keys = random.split(random.key(2), 2)
    start = vmap(init)(keys)
    before = tree.map(torch.clone, start.algo.params)
    compiled = compile(vmap(step))
    after, info = compiled(start)
    assert_trees_equal(start.algo.params, before)
    if variant != "pqn":
        with pytest.raises(SpentError):
            start.algo.replay.steps.content.memory["reward"].sum()
    after, info = steps(compiled, after, 4)
    for i in (0, 1):
        lone, lone_info = steps(step, init(keys[i]), 5)
        assert torch.equal(lone.key, after.key[i])
        assert torch.equal(lone.actors.inputs.prev_action, after.actors.inputs.prev_action[i])
        assert_trees_equal(lone_info, info[i], rtol=1e-4, atol=1e-4)
        assert_trees_equal(tree.leaves(lone), tree.leaves(tree.index(after, i)), rtol=1e-3, atol=1e-4)
    if variant != "pqn":
        assert (after.algo.updates == 16).all()  # four a batch, from the second batch on
    learnt, _ = steps(compiled, after, 245)
    for i in (0, 1):
        check_values(algo, env, tree.index(learnt.algo, i))


def check_values(algo, env, state):
    inputs = init_actors(algo, env, 1, random.key(0)).inputs

    def best(*obs):
        return values(algo, state, torch.tensor([obs])).max().item()

    a, b0, b1 = best(1.0, 0, 0, 1, 0, 1.0), best(0.0, 1, 0, 1, 0, 1.0), best(0.0, 1, 0, 0, 1, 1.0)
    assert a == pytest.approx(1.0, abs=0.15)
    assert b1 == pytest.approx(1.0, abs=0.15)
    assert b0 == pytest.approx(0.8, abs=0.15)
    assert best(0.0, 0, 1, 1, 0, -1.0) == pytest.approx(5.0, abs=0.6)  # 1 / (1 - 0.8): being cut is not the end
    for side, action in ((1.0, 1), (-1.0, 0)):
        seen = inputs.replace(obs=torch.tensor([[1.0, 0, 0, 1, 0, side]]))
        assert algo.mode(algo.acting(state), seen, algo.carry(1))[0].item() == action


def values(algo, state, obs):
    """`[A]` of one observation, without noise."""
    heads = {"c51": algos.c51, "rainbow": algos.c51, "qrdqn": algos.qrdqn}
    name = type(algo.config).__name__.removesuffix("Config").lower()
    config = algo.config
    match name:
        case "c51" | "rainbow":
            head = heads[name].head(config.n_atoms, config.v_min, config.v_max)
        case "qrdqn":
            head = algos.qrdqn.head(config.n_quantiles, config.kappa)
        case _:
            head = algos.dqn.head("squared")
    layer = nets.Noisy if getattr(config, "noisy", False) else nets.Plain
    norm = nets.NORMS[getattr(config, "norm", "none")]
    model = ql.make_model(algo.spec, config, head, layer, None, norm)
    return head.values(ql.values(model, state.params, obs, torch.zeros(1, model.n_noise)))[0]


@pytest.mark.torch_modules
@pytest.mark.parametrize("double", [False, True])
def test_update_follows_a_plain_loop_with_torch_modules(double):
    """The same transitions through an ordinary network, optimizer and target network."""
    env = envs.make("CartPole-v1")
    config = {**SMALL, "lr": 1e-2, "target_every": 2, "double": double, "activation": "tanh"}
    algo = make_dqn(env.spec, DQNConfig(**config))
    state = algo.init(random.key(3))
    online, target = [nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)) for _ in range(2)]
    for net in (online, target):  # the target begins as the online network
        net.load_state_dict(dict(zip(net.state_dict(), state.params.values(), strict=True)))
    assert_trees_equal(state.params, state.target)
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-2)
    memory = ql.make_replay(env.spec, algo.config)
    twin, actors, n_updates = memory.init(None), init_actors(algo, env, 2, random.key(4)), 0
    zero = torch.zeros(())
    for t in range(6):
        actors, batch = rollout(algo, env, state, actors, 4, random.fold_in(random.key(5), t))
        keys = random.split(state.key, 3)[1:]
        twin = memory.add(twin, batch, zero)
        state, info = algo.update(state, batch)
        if (t + 1) * 8 < 16:
            continue
        for key in keys:
            it = memory.sample(twin, random.split(key)[0], 8, torch.tensor(0.99), zero).transitions
            with torch.no_grad():
                chooser = online if double else target
                best = chooser(it.next_obs).argmax(-1, keepdim=True)
                aim = it.reward + it.discount * target(it.next_obs).gather(1, best).squeeze(1)
            error = aim - online(it.obs).gather(1, it.action[:, None]).squeeze(1)
            optimizer.zero_grad()
            (0.5 * error**2).mean().backward()
            optimizer.step()
            n_updates += 1
            if n_updates % 2 == 0:
                target.load_state_dict(online.state_dict())
        assert_trees_equal([*state.params.values()], [*online.state_dict().values()], rtol=1e-4, atol=1e-5)
        assert_trees_equal([*state.target.values()], [*target.state_dict().values()], rtol=1e-4, atol=1e-5)
    assert int(state.updates) == n_updates == 10
    assert info["replay_ratio"].item() == pytest.approx(10 * 8 / 48)


def test_epsilon_falls_and_is_followed():
    env = envs.make("CartPole-v1")
    algo = make("dqn", env.spec, epsilon_start=1.0, epsilon_end=0.1, exploration=0.5, total_steps=64)
    init, step = fuse(algo, env)
    state, found = init(random.key(0)), []
    for _ in range(6):
        state, info = step(state)
        found.append(round(info["epsilon"].item(), 4))
    assert found == [0.775, 0.55, 0.325, 0.1, 0.1, 0.1]
    acting = algo.acting(state.algo).replace(epsilon=torch.tensor(0.25))
    inputs = init_actors(algo, env, 4000, random.key(1)).inputs
    best, _ = algo.mode(acting, inputs, algo.carry(1))
    action, _, _ = algo.act(acting, inputs, algo.carry(1), vmap(algo.draw)(random.split(random.key(2), 4000)))
    assert (action != best).float().mean().item() == pytest.approx(0.125, abs=0.02)  # half of the random ones


@pytest.mark.parametrize("name", ["dqn", "c51", "qrdqn", "rainbow", "pqn"])
def test_defaults_for_images_and_boards(name):
    images = EnvSpec("ALE/Any-v5", gym.spaces.Box(0, 255, (4, 84, 84), "uint8"), gym.spaces.Discrete(4))
    for spec, gigabytes in ((images, 7.5), (envs.make("MinAtar/Breakout-v1").spec, 0.2)):
        algo = algos.make(name, spec)
        state = shapes(algo.init, random.key(0))
        leaves, structure = tree.flatten(state)
        memory = [x.nbytes for x, is_donated in zip(leaves, tree.donated(structure), strict=True) if is_donated]
        assert sum(memory) <= gigabytes * 1e9
        inputs = tree.map(lambda x: x.to("meta"), blank_inputs(spec, 2))
        noise = shapes(lambda key, algo=algo: vmap(algo.draw)(random.split(key, 2)), random.key(0))
        action, _, _ = shapes(algo.act, algo.acting(state), inputs, algo.carry(2), noise)
        assert action.shape == (2,)


@pytest.mark.torch_modules
@pytest.mark.parametrize("space", [gym.spaces.Box(0, 255, (2, 40, 36), "uint8"), gym.spaces.Box(0.0, 1.0, (2, 10, 10))])
def test_convolutions_may_learn_in_bfloat16(space):
    """The same parameters give nearly the same numbers, all of float32; acting stays as it is."""
    spec = EnvSpec("Images", space, gym.spaces.Discrete(3))
    exact, rough = (
        ql.make_model(spec, DQNConfig(hidden=(16,), precision=name), algos.dqn.head("squared"), nets.Plain, None)
        for name in ("float32", "bfloat16")
    )
    params, noise = exact.net.init(random.key(0)), torch.zeros(5, 0)
    obs = random.uniform(random.key(1), (5, *space.shape))
    obs = (obs * 255).to(torch.uint8) if space.dtype == "uint8" else obs

    def learn(model):
        flat, unravel = tree.ravel(params)
        return torch.func.grad_and_value(lambda flat: ql.values(model, unravel(flat), obs, noise).square().sum())(flat)

    (gradient, total), (near_gradient, near_total) = learn(exact), learn(rough)
    assert near_gradient.dtype == near_total.dtype == torch.float32
    assert near_total != total
    torch.testing.assert_close(near_total, total, rtol=0.02, atol=0)
    torch.testing.assert_close(near_gradient, gradient, rtol=0, atol=0.02 * gradient.abs().max().item())
    seen = ql.see(blank_inputs(spec, 5).replace(obs=obs), noise)
    assert_trees_equal(*(nets.step(model.net, params, seen, TensorDict())[0] for model in (exact, rough)))


def test_environments_may_differ_in_epsilon():
    """Ape-X: environment i of N explores with epsilon ** (1 + 7 i / (N - 1)), in whatever episode it is."""
    env = envs.pure(probes.MATCH)
    algo = make("dqn", env.spec, n_envs=3, epsilon_spread=1.0)
    acting = algo.acting(algo.init(random.key(0))).replace(epsilon=torch.tensor(0.5))
    state = type("State", (), {"params": acting.params, "epsilon": acting.epsilon})()
    _, batch = rollout(algo, env, state, init_actors(algo, env, 3, random.key(1)), 3000, random.key(2))
    best, _ = vmap(lambda inputs: algo.mode(acting, inputs, algo.carry(3)))(batch.inputs)
    strayed = (batch.action != best).float().mean(0)
    torch.testing.assert_close(strayed, torch.tensor([0.5, 0.5**1.5, 0.25]) / 2, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"capacity": 4, "batch_size": 8}, r"^DQNConfig.capacity = 4 is less than batch_size = 8$"),
        (
            {"capacity": 30, "n_step": 15},
            r"^capacity = 30 is not more than n_step \* n_envs = 15 \* 2, the steps of one transition$",
        ),
        ({"capacity": 8, "n_steps": 5}, r"^DQNConfig.capacity = 8 is less than a batch of n_envs \* n_steps = 2 \* 5$"),
        ({"alpha": 1.5}, r"^DQNConfig.alpha = 1.5 is not a number between 0.0 and 1.0$"),
        ({"beta": -0.1}, r"^DQNConfig.beta = -0.1 is not a number between 0.0 and 1.0$"),
        ({"tau": 0.0}, r"^DQNConfig.tau = 0.0 is not a number between 1e-09 and 1.0$"),
        ({"replay_ratio": 0.1}, r"^DQNConfig.replay_ratio = 0.1 makes .* gradient steps .*, but the least is one: it "),
        ({"learning_starts": 9, "total_steps": 8}, r"^DQNConfig.learning_starts = 9 is more than total_steps = 8, so that nothing"),
        ({"frames": 4}, r"^DQNConfig.frames = 4: observations are Box.*, not stacks of 4 images \[4, H, W\] of bytes$"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        make("dqn", envs.make("CartPole-v1").spec, **config)


def test_bad_spaces_support_and_network():
    with pytest.raises(ValueError, match=r"^C51Config.v_min = 1.0 is not less than v_max = 1.0$"):
        make("c51", envs.make("CartPole-v1").spec, v_min=1.0, v_max=1.0)
    with pytest.raises(ValueError, match=r"^action space: Box.* is not Discrete, which action values need$"):
        make("dqn", envs.make("Pendulum-v1").spec)
    with torch.device("meta"):
        net = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"^net: it returns \[2, 3, 1\] for 2 observations, but \[2, 2, 1\] is wanted$"):
        make_dqn(envs.make("CartPole-v1").spec, net=net)


def test_a_batch_of_other_sizes_is_refused():
    env = envs.make("CartPole-v1")
    init, step = fuse(make("dqn", env.spec, n_envs=2, n_steps=4), env, n_envs=3)
    with pytest.raises(ValueError, match=r"^batch: 4 steps of 3 environments, but DQNConfig has n_steps = 4 and n_envs = 2, which"):
        step(init(random.key(0)))
