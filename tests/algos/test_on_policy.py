"""PPO and A2C: purity, transforms, probes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from torch import nn

from purerl import compile, envs, fuse, make_a2c, make_ppo, nets, random, tree, vmap
from purerl.algos import A2CConfig, PPOConfig
from purerl.base import EnvSpec
from purerl.envs import probes
from purerl.rollout import init_actors, rollout

MAKERS = {
    "ppo": lambda spec, **kw: make_ppo(
        spec, PPOConfig(**{"n_envs": 2, "n_steps": 16, "epochs": 2, "n_minibatches": 2, "hidden": (16,), **kw})
    ),
    "a2c": lambda spec, **kw: make_a2c(spec, A2CConfig(**{"n_envs": 2, "n_steps": 16, "hidden": (16,), **kw})),
}


@pytest.mark.parametrize("name", MAKERS)
def test_fused_step_compiles_whole_never_again_and_agrees(name):
    """Sixteen seeds, compiled and vmapped, against lone eager runs of the same seeds; inputs unmutated; no recompile."""
    env = envs.make("CartPole-v1")
    algo = MAKERS[name](env.spec, lr=1e-3)
    init, step = fuse(algo, env)
    keys = random.split(random.key(0), 16)
    start = vmap(init)(keys)
    for i in (0, 7):
        assert_trees_equal(start[i], init(keys[i]))

    before = tree.map(torch.clone, start)
    compiled = compile(vmap(step))
    one, info = compiled(start)
    assert_trees_equal(start, before)
    two, _ = compiled(one)
    with torch._dynamo.config.patch(error_on_recompile=True):
        three, _ = compiled(two)
    assert (three.algo.steps == 96).all()

    eager, eager_info = vmap(step)(start)
    assert_trees_equal(one, eager, rtol=1e-5, atol=1e-6)
    assert_trees_equal(info, eager_info, rtol=1e-5, atol=1e-5)
    for i in (3, 15):
        lone = step(step(init(keys[i]))[0])[0]
        assert torch.equal(lone.key, two.key[i])
        assert torch.equal(lone.actors.inputs.prev_action, two.actors.inputs.prev_action[i])
        assert_trees_equal(lone, two[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("normalize", [False, True])
def test_update_compiles_and_leaves_its_inputs_alone(name, normalize):
    env = envs.make("Pendulum-v1")
    algo = MAKERS[name](env.spec, normalize_obs=normalize, normalize_reward=normalize)
    keys = random.split(random.key(1), 3)
    state = vmap(algo.init)(keys)
    _, batch = vmap(lambda s, k: rollout(algo, env, s, init_actors(algo, env, 2, k), 16, k))(state, keys)
    before = tree.map(torch.clone, (state, batch))
    compiled = compile(vmap(algo.update))
    once, _ = compiled(state, batch)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(once, batch)
    assert_trees_equal((state, batch), before)
    expected, _ = vmap(algo.update)(state, batch)
    assert_trees_equal(once, expected, rtol=1e-5, atol=1e-6)
    if normalize:
        assert (once.obs_moments.count > 30).all()


def run(maker, probe, updates, **config):
    env = envs.pure(probe)
    algo = maker(env.spec, **config)
    init, step = fuse(algo, env)
    state = init(random.key(2))
    for _ in range(updates):
        state, _ = step(state)
    return algo, state.algo


def value(algo, state, obs):
    with torch.device("meta"):
        net = nets.ActorCritic(algo.spec.observation_space, algo.spec.action_space, algo.config.hidden, "tanh", False)
    return nets.apply(net, state.params, torch.tensor([[obs]]))[1].item()


FAST = {
    "ppo": {"lr": 3e-3, "lr_schedule": "constant", "clip_value": False, "n_envs": 16, "n_steps": 8},
    "a2c": {"lr": 3e-3, "n_envs": 16, "n_steps": 8},
}


@pytest.mark.parametrize("name", MAKERS)
def test_probe_values(name):
    """Constant reward; reward read from the observation; reward delayed by a step."""
    algo, state = run(MAKERS[name], probes.OBSERVED, 200, **FAST[name])
    assert value(algo, state, 1.0) == pytest.approx(1.0, abs=0.1)
    assert value(algo, state, -1.0) == pytest.approx(-1.0, abs=0.1)
    algo, state = run(MAKERS[name], probes.DELAYED, 200, gamma=0.5, **FAST[name])
    assert value(algo, state, 0.0) == pytest.approx(1.0, abs=0.1)
    assert value(algo, state, 1.0) == pytest.approx(0.5, abs=0.1)


def test_truncation_bootstraps():
    """Reward 1 for ever, cut every 5 steps: V = 1 / (1 - 0.8) = 5, not what five steps pay."""
    algo, state = run(MAKERS["ppo"], probes.ENDLESS, 400, gamma=0.8, **FAST["ppo"])
    assert value(algo, state, 1.0) == pytest.approx(5.0, abs=0.4)


@pytest.mark.parametrize("name", MAKERS)
def test_probe_policies(name):
    algo, state = run(MAKERS[name], probes.MATCH, 200, **FAST[name])
    obs = torch.tensor([[1.0], [-1.0]])
    inputs = init_actors(algo, envs.pure(probes.MATCH), 2, random.key(0)).inputs
    action, _ = algo.mode(algo.acting(state), inputs.replace(obs=obs), algo.carry(2))
    assert action.tolist() == [1, 0]


def test_probe_continuous_policy():
    algo, state = run(MAKERS["ppo"], probes.TARGET, 400, **{**FAST["ppo"], "lr": 1e-3})
    inputs = init_actors(algo, envs.pure(probes.TARGET), 2, random.key(0)).inputs.replace(obs=torch.tensor([[1.0], [-1.0]]))
    action, _ = algo.mode(algo.acting(state), inputs, algo.carry(2))
    np.testing.assert_allclose(action[:, 0], [0.5, -0.5], atol=0.15)


def test_target_kl_stops_the_epochs():
    """With a target below any movement, only the first epoch of a batch counts."""
    env = envs.make("CartPole-v1")
    keys = random.split(random.key(3), 1)
    states = {}
    for label, config in {"one": {"epochs": 1}, "stopped": {"epochs": 3, "target_kl": 0.0}}.items():
        algo = MAKERS["ppo"](env.spec, lr=1e-2, **config)
        state = algo.init(keys[0])
        _, batch = rollout(algo, env, state, init_actors(algo, env, 2, keys[0]), 16, keys[0])
        states[label], _ = algo.update(state, batch)
    assert_trees_equal(states["one"].opt["1", "0", "count"], torch.tensor(2.0))
    assert_trees_equal(states["stopped"].opt["1", "0", "count"], torch.tensor(2.0))


def test_schedules_and_sweeps_reach_the_update():
    env = envs.make("CartPole-v1")
    algo = MAKERS["ppo"](env.spec, total_steps=64, lr=1.0, clip_schedule="linear")
    init, step = fuse(algo, env)
    state = init(random.key(0))
    lrs = []
    for _ in range(3):
        state, info = step(state)
        lrs.append(info["lr"].item())
    assert lrs == [1.0, 0.5, 0.0]


@pytest.mark.torch_modules
def test_a_network_of_ones_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.policy, self.value = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 1)

        def forward(self, obs):
            x = torch.relu(self.body(obs))
            return self.policy(x), self.value(x).squeeze(-1)

    env = envs.make("CartPole-v1")
    init, step = fuse(make_ppo(env.spec, net=Net()), env, n_envs=2, n_steps=8)
    state, info = step(init(random.key(0)))
    assert state.algo.params["body.weight"].shape == (8, 4)
    assert torch.isfinite(info["loss"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", -1.0, r"^PPOConfig.lr = -1.0 is not a number at least 0.0$"),
        ("gamma", 1.5, r"^PPOConfig.gamma = 1.5 is not a number between 0.0 and 1.0$"),
        ("epochs", 0, r"^PPOConfig.epochs = 0 is not an integer at least 1$"),
        ("epochs", 1.5, r"^PPOConfig.epochs = 1.5 is not an integer at least 1$"),
        ("activation", "sine", r"^PPOConfig.activation = 'sine' is not one of tanh, relu, elu, silu$"),
        ("n_minibatches", 7, r"^PPOConfig.n_minibatches = 7 does not divide the batch of n_envs \* n_steps = 4 \* 128 = 512$"),
    ],
)
def test_config_out_of_range(field, value, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**{field: value})


def test_wrong_spaces():
    box = gym.spaces.Box(-1, 1, (2,))
    with pytest.raises(ValueError, match=r"^action space: .* is not Discrete, MultiDiscrete, MultiBinary or a Box of floats$"):
        make_ppo(EnvSpec("x", box, gym.spaces.Dict(a=box, b=gym.spaces.Text(3))))
    with pytest.raises(ValueError, match=r"^normalize_obs = True needs a Box of floats as observation space, not Discrete\(3\)$"):
        make_ppo(EnvSpec("x", gym.spaces.Discrete(3), box), PPOConfig(normalize_obs=True))
