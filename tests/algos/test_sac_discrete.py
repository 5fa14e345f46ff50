"""Discrete SAC: lanes, the values of a probe, and its first gradient steps beside torch's autograd."""

import dataclasses
import math

import gymnasium as gym
import pytest
import torch
from algos.test_q_learning import _probe, steps
from conftest import assert_trees_equal

from purerl import algos, compile, envs, fuse, random, tree, vmap
from purerl.algos import continuous as ac
from purerl.algos import sac_discrete
from purerl.base import EnvSpec
from purerl.rollout import init_actors, rollout

SMALL = {
    "n_envs": 8,
    "n_steps": 4,
    "capacity": 2000,
    "batch_size": 64,
    "utd": 0.125,
    "learning_starts": 64,
    "actor_lr": 3e-3,
    "critic_lr": 3e-3,
    "gamma": 0.8,
    "tau": 0.2,
    "hidden": (32, 32),
}


def make(spec, **config):
    return algos.make_sac_discrete(spec, algos.SACDiscreteConfig(**{**SMALL, **config}))


def test_compiled_lanes_are_the_lone_runs_and_reach_known_values():
    env = _probe()
    algo = make(env.spec, temperature=0.02, learn_temperature=False)
    init, step = fuse(algo, env)
    keys = random.split(random.key(2), 2)
    compiled = compile(vmap(step))
    after, info = steps(compiled, vmap(init)(keys), 4)
    for i in (0, 1):
        lone, lone_info = steps(step, init(keys[i]), 4)
        assert torch.equal(lone.actors.inputs.prev_action, after.actors.inputs.prev_action[i])
        assert_trees_equal(lone_info, info[i], rtol=1e-3, atol=1e-3)
        assert_trees_equal(lone.algo.params, after.algo.params[i], rtol=1e-3, atol=1e-3)
    learnt, _ = steps(compiled, after, 250)
    inputs = init_actors(algo, env, 1, random.key(0)).inputs
    model = sac_discrete.make_model(env.spec, algo.config)
    for i in (0, 1):
        state = tree.index(learnt.algo, i)
        for obs, value in (
            ((1.0, 0, 0, 1, 0, 1.0), 1.0),
            ((0.0, 1, 0, 1, 0, 1.0), 0.8),
            ((0.0, 1, 0, 0, 1, 1.0), 1.0),
            ((0.0, 0, 1, 1, 0, -1.0), 5.0),
        ):
            obs = torch.tensor([obs])
            q = model.critics.at(state.params, obs, torch.zeros(1), random.key(0))
            assert q.shape == (2, 1, 2)
            assert q.amax(-1).mean().item() == pytest.approx(value, abs=0.2 * value)
        for side, action in ((1.0, 1), (-1.0, 0)):
            seen = inputs.replace(obs=torch.tensor([[1.0, 0, 0, 1, 0, side]]))
            assert algo.mode(algo.acting(state), seen, algo.carry(1))[0].item() == action


def test_an_update_follows_a_plain_loop():
    env = envs.make("CartPole-v1")
    algo = make(env.spec, n_steps=1, batch_size=16, learning_starts=32, hidden=(8,), temperature=0.3, target_entropy=0.5)
    init, step = fuse(algo, env)
    before, _ = steps(step, init(random.key(3)), 3)
    after, _ = step(tree.map(torch.clone, before))
    _, batch = rollout(algo, env, before.algo, before.actors, 1, random.split(before.key)[1])
    state, config = before.algo, algo.config
    memory = ac.make_replay(env.spec, config)
    filled = memory.add(state.replay, batch, torch.tensor(0.0))
    critic_key, policy_key = random.split(random.split(state.key)[1])
    gamma = state.hyper["gamma"]
    it = memory.sample(filled, random.split(random.split(critic_key, 1)[0], 4)[0], 16, gamma, gamma).transitions
    policy_it = memory.sample(filled, random.split(random.split(policy_key, 1)[0], 3)[0], 16, gamma, gamma).transitions

    def net(params, obs, out):
        h = torch.relu(obs @ params["mlp.0.weight"].mT + params["mlp.0.bias"].unsqueeze(-2))
        return h @ params[f"{out}.weight"].mT + params[f"{out}.bias"].unsqueeze(-2)

    parts = {name: {k: x.clone().requires_grad_() for k, x in state.params[name].items()} for name in ("actor", "critics")}
    alpha = torch.tensor(0.3)

    log_p = torch.log_softmax(net(parts["actor"], it.next_obs, "mean"), -1)
    v = (log_p.exp() * (net(state.target["critics"], it.next_obs, "out").amin(0) - alpha * log_p)).sum(-1)
    q = net(parts["critics"], it.obs, "out")[:, torch.arange(16), it.action]
    ((it.reward + it.discount * v).detach() - q).square().mean(-1).sum().backward()
    _check(parts["critics"], config.critic_lr, after.algo.params["critics"])

    log_p = torch.log_softmax(net(parts["actor"], policy_it.obs, "mean"), -1)
    q = net(parts["critics"], policy_it.obs, "out").amin(0).detach()
    parts["actor"] = {k: x.detach().requires_grad_() for k, x in parts["actor"].items()}
    log_p = torch.log_softmax(net(parts["actor"], policy_it.obs, "mean"), -1)
    (log_p.exp() * (alpha * log_p - q)).sum(-1).mean().backward()
    _check(parts["actor"], config.actor_lr, after.algo.params["actor"])

    log_p = torch.log_softmax(net(after.algo.params["actor"], policy_it.obs, "mean"), -1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    log_alpha = alpha.log().requires_grad_()
    (log_alpha.exp() * (entropy - 0.5 * math.log(2))).backward()
    torch.optim.Adam([log_alpha], lr=config.critic_lr).step()
    torch.testing.assert_close(after.algo.params["log_temperature"], log_alpha.detach())


def _check(params, lr, found):
    """Adam's first step, as torch takes it, leads to the parameters that were found."""
    torch.optim.Adam(params.values(), lr=lr).step()
    assert_trees_equal([found[name] for name in params], [x.detach() for x in params.values()], rtol=1e-4, atol=1e-6)


def test_bad_spaces_and_settings():
    box = gym.spaces.Box(-1.0, 1.0, (2,))
    with pytest.raises(ValueError, match=r"^action space: Box.* is not Discrete, which discrete SAC needs$"):
        algos.make_sac_discrete(EnvSpec("x", box, box))
    spec = EnvSpec("x", box, gym.spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"^SACDiscreteConfig.target_entropy = 1.5 is not a number between 0.0 and 1.0$"):
        algos.make_sac_discrete(spec, dataclasses.replace(algos.SACDiscreteConfig(), target_entropy=1.5))
