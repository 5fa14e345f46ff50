"""DDPG, TD3, SAC: purity, transforms, a probe with known values, slow references, bounds of actions."""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import CONTINUOUS, assert_trees_equal
from tensordict import TensorDict

from purerl import SpentError, algos, compile, distributions, envs, fuse, nets, normalize, random, tree, vmap
from purerl.algos import continuous as ac
from purerl.algos import ensembles
from purerl.base import Batch, Env, EnvSpec
from purerl.replay import Transitions
from purerl.rollout import rollout
from purerl.spaces import blank_inputs

OPTIONS = {"n_step": 2, "prioritized": True, "normalize_obs": True, "n_critics": 3, "norm": "layer", "policy_every": 4}
VARIANTS = {
    "ddpg": {},
    "td3": {"target_noise": 0.1},
    "sac": {"temperature": 0.02, "learn_temperature": False},
    "sac options": {**OPTIONS, "target_entropy": -4.0, "temperature": 0.02, "belief": "mean", "dropout": 0.01},
    "sac joint": {
        "temperature": 0.02,
        "learn_temperature": False,
        "batch_norm": True,
        "critic_hidden": (64, 64),
        "adam_b1": 0.5,
        "n_quantiles": 5,
        "n_dropped": 1,
    },
    "sac unit": {
        "temperature": 0.02,
        "learn_temperature": False,
        "batch_norm": True,
        "unit_weights": True,
        "critic_hidden": (64, 64),
        "n_atoms": 51,
        "normalize_reward": True,
    },
}
SMALL = {
    "n_envs": 8,
    "n_steps": 4,
    "capacity": 2000,
    "batch_size": 64,
    "utd": 0.125,
    "learning_starts": 64,
    "gamma": 0.8,
    "tau": 0.1,
    "actor_lr": 3e-3,
    "critic_lr": 5e-3,
    "hidden": (32, 32),
}


def make(variant, spec, **config):
    name = variant.split()[0]
    default = algos.default_config(name, spec)
    return algos.make(name, spec, dataclasses.replace(default, **{**SMALL, **VARIANTS[variant], **config}))


def _probe():
    """A target is shown, and the reward is minus the square of what the action misses it by; bounds are not symmetric. Half of the
    episodes terminate at once; the others go on with the same target and are cut after three steps."""
    never = torch.zeros((), dtype=torch.bool)

    def reset(noise):
        target, kind = 1.0 + 2.0 * noise[0], (noise[1] < 0.5).float()
        state = torch.stack([target, kind])
        return state, state.clone()

    def step(state, action, noise):
        reward = 1.0 - (action[0] - state[0]) ** 2
        return state, state.clone(), reward, state[1] > 0, never.clone(), {}

    spec = EnvSpec("probe/aim", gym.spaces.Box(0.0, 3.0, (2,)), gym.spaces.Box(0.0, 4.0, (1,)), 3)
    return envs.pure(Env(spec, reset, step, draw=lambda key: random.uniform(key, (2,))))


def steps(step, state, n):
    for _ in range(n):
        state, info = step(state)
    return state, info


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_lanes_are_the_lone_runs_and_reach_known_values(variant):
    """Compiled and mapped against lone eager runs; compiled once; the inputs, but for what is donated, are left alone; and after
    some hundred steps the policy aims well, and the critics know 1 where an episode ends and 5 = 1 / (1 - 0.8) where it is cut."""
    env = _probe()
    algo = make(variant, env.spec)
    init, step = fuse(algo, env)
    keys = random.split(random.key(1), 2)
    start = vmap(init)(keys)
    before = tree.map(torch.clone, start.algo.params)
    compiled = compile(vmap(step))
    after, info = compiled(start)
    assert_trees_equal(start.algo.params, before)
    with pytest.raises(SpentError):
        start.algo.replay.steps.content.memory["reward"].sum()
    after, info = steps(compiled, after, 3)
    for i in (0, 1):
        lone, lone_info = steps(step, init(keys[i]), 4)
        assert torch.equal(lone.key, after.key[i])
        torch.testing.assert_close(lone.actors.inputs.prev_action, after.actors.inputs.prev_action[i], rtol=1e-3, atol=1e-4)
        assert_trees_equal(lone_info, info[i], rtol=1e-3, atol=1e-3)
        assert_trees_equal(lone.algo.params, after.algo.params[i], rtol=1e-2, atol=1e-3)
    assert (after.algo.updates == 12).all()  # four a batch, from the second batch on
    learnt, _ = steps(compiled, after, 250)
    for i in (0, 1):
        check(algo, env, tree.index(learnt.algo, i))


def model_of(algo):
    config = algo.config
    match config:
        case algos.SACConfig():
            return ac.make_model(algo.spec, config, ensembles.head(config), config.n_critics, True)
        case algos.TD3Config():
            return ac.make_model(algo.spec, config, ensembles.number(config.subset), config.n_critics, False)
    return ac.make_model(algo.spec, config, ensembles.number(1), 1, False)


def check(algo, env, state):
    targets = torch.tensor([1.2, 2.0, 2.8])
    for kind, value in ((1.0, 1.0), (0.0, 5.0)):
        obs = torch.stack([targets, torch.full((3,), kind)], -1)
        inputs = tree.expand(tree.map(lambda x: x[0], blank_inputs(env.spec, 1)), 3).replace(obs=obs)
        action, _ = algo.mode(algo.acting(state), inputs, algo.carry(3))
        torch.testing.assert_close(action[:, 0], targets, rtol=0, atol=0.2)
        name = type(algo.config).__name__.removesuffix("Config").lower()
        model = model_of(algo)
        seen = model.see(state.moments, obs)
        critics = model.critics
        found = critics.head.values(critics.at(state.params, seen, model.actions.inward(action), random.key(0)))
        if algo.config.normalize_reward:
            found = found * normalize.reward_unit(state.reward_scale, critics.head.bound)
        entropy = 0.2 if name == "sac" else 0.0  # a soft value holds the entropy's too
        torch.testing.assert_close(found.mean(0), torch.full((3,), value), rtol=0, atol=0.15 * value + entropy * value)


def _first_update(name, **config):
    """The first gradient step of all parts: the state before and after it, the transitions that the critics and the policy saw, and
    their keys."""
    env = _probe()
    once = {"n_steps": 1, "policy_every": 1, "policy_updates": 1, "target_every": 1, "learning_starts": 32, "batch_size": 16}
    algo = make(name, env.spec, **{**once, **config})
    init, step = fuse(algo, env)
    before, _ = steps(step, init(random.key(3)), 3)
    after, _ = step(tree.map(torch.clone, before))
    _, batch = rollout(algo, env, before.algo, before.actors, 1, random.split(before.key)[1])
    memory, state = ac.make_replay(env.spec, algo.config), before.algo
    filled = memory.add(state.replay, batch, torch.tensor(0.0))
    critic_key, policy_key = random.split(random.split(state.key)[1])
    gamma = state.hyper["gamma"]
    model = model_of(algo)

    def drawn(key, n_uses):
        sample_key, *keys = random.split(key, 1 + n_uses)
        it = memory.sample(filled, sample_key, 16, gamma, gamma).transitions
        return it.replace(action=model.actions.inward(it.action)), keys

    it, (ahead_key, *_) = drawn(random.split(critic_key, 1)[0], 3)
    policy_it, policy_keys = drawn(random.split(policy_key, 1)[0], len(state.params.keys()) - 1)
    return algo, state, after.algo, (it, ahead_key), (policy_it, policy_keys)


def _modules(params):
    """What PairValues and PolicyParameters compute, from parameters that torch's autograd follows."""
    params = {name: x.clone().requires_grad_() for name, x in params.items()}

    def mlp(x):
        for i in (0, 2):
            x = torch.relu(x @ params[f"mlp.{i}.weight"].mT + params[f"mlp.{i}.bias"])
        return x

    def head(name, x):
        return x @ params[f"{name}.weight"].mT + params[f"{name}.bias"]

    return params, mlp, head


def _policy(parts, obs, deviations):
    _, mlp, head = parts
    features, (low, high) = mlp(obs), nets.LOG_STD
    mean = head("mean", features)
    return torch.cat([mean, low + (high - low) / 2 * (torch.tanh(head("log_std", features)) + 1)], -1) if deviations else mean


def _q(critics, obs, action):
    return torch.stack([head("out", mlp(torch.cat([obs, action], -1))).squeeze(-1) for _, mlp, head in critics])


def _parts(params, n):
    return [_modules(tree.index(params, i)) for i in range(n)]


def _check_step(params, lr, found):
    """Adam's first step, as torch takes it, leads to the parameters that were found."""
    torch.optim.Adam(params.values(), lr=lr).step()
    assert_trees_equal([found[name] for name in params], [x.detach() for x in params.values()], rtol=1e-4, atol=1e-6)


def _check_critics(config, critics, it, wanted, before, after):
    sum(((each - wanted.detach()) ** 2).mean() for each in _q(critics, it.obs, it.action)).backward()
    for i, (params, _, _) in enumerate(critics):
        _check_step(params, config.critic_lr, tree.index(after.params["critics"], i))
        for name, x in params.items():
            old = before.target["critics"][name][i]
            moved = old + config.tau * (x.detach() - old)
            torch.testing.assert_close(after.target["critics"][name][i], moved, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [True, False])
def test_a_sac_update_follows_a_plain_loop(temperature):
    """The first gradient steps of all parts, by torch's autograd and optimizer, from the same transitions and noise."""
    algo, before, after, (it, key), (policy_it, keys) = _first_update("sac", learn_temperature=temperature, temperature=0.3)
    config, alpha = algo.config, torch.tensor(0.3)
    dist = distributions.tanh_gaussian(-torch.ones(1), torch.ones(1))
    critics, actor = _parts(before.params["critics"], 2), _modules(before.params["actor"])

    noise = random.normal(key, (16, 1))
    action, log_prob = dist.sample_and_log_prob(_policy(actor, it.next_obs, True), noise)
    q = _q(_parts(before.target["critics"], 2), it.next_obs, action).amin(0)
    _check_critics(config, critics, it, it.reward + it.discount * (q - alpha * log_prob), before, after)

    action, log_prob = dist.sample_and_log_prob(
        _policy(actor, policy_it.obs, True), random.normal(random.split(keys[0])[0], (16, 1))
    )
    (alpha * log_prob - _q(critics, policy_it.obs, action).amin(0)).mean().backward()
    _check_step(actor[0], config.actor_lr, after.params["actor"])
    if temperature:
        log_alpha = alpha.log().requires_grad_()
        _, log_prob = dist.sample_and_log_prob(_policy(actor, policy_it.obs, True), random.normal(keys[1], (16, 1)))
        (-log_alpha.exp() * (log_prob.mean() + config.target_entropy).detach()).backward()
        torch.optim.Adam([log_alpha], lr=config.critic_lr).step()
        torch.testing.assert_close(after.params["log_temperature"], log_alpha.detach())


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_a_deterministic_update_follows_a_plain_loop(name):
    algo, before, after, (it, key), (policy_it, _) = _first_update(name)
    config = algo.config
    n_critics = 2 if name == "td3" else 1
    critics, actor = _parts(before.params["critics"], n_critics), _modules(before.params["actor"])
    targets, action = _parts(before.target["critics"], n_critics), torch.tanh(_policy(actor, it.next_obs, False))
    if name == "td3":
        noise = config.target_noise * random.normal(key, (16, 1))
        action = (action + noise.clamp(-config.target_clip, config.target_clip)).clamp(-1, 1)
    wanted = it.reward + it.discount * _q(targets, it.next_obs, action).amin(0)
    _check_critics(config, critics, it, wanted, before, after)
    (-_q(critics[:1], policy_it.obs, torch.tanh(_policy(actor, policy_it.obs, False))).mean()).backward()
    _check_step(actor[0], config.actor_lr, after.params["actor"])


def test_log_probabilities_of_a_squashed_gaussian_integrate_to_one():
    """On a fine grid of actions between walls that are not symmetric; and the sample's own is finite and right at the walls, where
    the action does not tell what it was before."""
    low, high = torch.tensor([-1.0]), torch.tensor([3.0])
    dist = distributions.tanh_gaussian(low, high)
    for params in ([0.3, -0.5], [-1.0, 0.2], [1.5, -2.0]):
        action = torch.linspace(-1, 3, 400_001)[1:-1, None]
        density = dist.log_prob(torch.tensor(params).expand(len(action), 2), action).exp()
        assert density.sum().item() * 1e-5 == pytest.approx(1.0, abs=2e-3)
    params, noise = torch.tensor([[30.0, 0.0], [-40.0, 1.0]]), torch.zeros(2, 1)
    action, log_prob = dist.sample_and_log_prob(params, noise)
    assert action.flatten().tolist() == [3.0, -1.0]
    u = params[:, 0].double()
    exact = -0.5 * math.log(2 * math.pi) - params[:, 1] - (math.log(2.0) + 2 * (math.log(2.0) - u.abs()))
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-6, atol=1e-5)
    gradient = torch.func.grad(lambda params: dist.sample_and_log_prob(params, noise)[1].sum())(params)
    assert torch.isfinite(gradient).all()


def test_a_subset_of_critics_is_drawn_and_its_least_believed():
    q = torch.arange(12.0).reshape(4, 3)
    assert ensembles.random_subset(q, 4, random.key(0)) is q
    found = torch.stack([ensembles.random_subset(q, 2, key).amin(0)[0] for key in random.split(random.key(0), 300)])
    counts = [(found == value).float().mean().item() for value in q[:, 0]]
    assert counts == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0], abs=0.08)  # the least of two of four
    assert torch.equal(ensembles.number(2, "mean").believe(q[..., None]), q.mean(0))
    assert torch.equal(ensembles.number(2).believe(q[..., None]), q[0])


def test_truncated_quantiles_by_hand():
    """Two critics with three quantiles of one pair each: the two highest of the six are dropped."""
    head = ensembles.truncated_quantiles(3, 1)
    next_out = torch.tensor([[[1.0, 5.0, 3.0]], [[9.0, 2.0, 4.0]]])
    one, half = torch.ones(1), torch.full((1,), 0.5)
    wanted = head.wanted(next_out, one, half, 2 * one, random.key(0))
    assert torch.equal(wanted, torch.tensor([[0.5, 1.0, 1.5, 2.0]]))  # 1 + 0.5 * (z - 2)
    assert torch.equal(head.values(next_out), torch.tensor([[3.0], [5.0]]))
    assert head.believe(next_out).tolist() == [4.0]
    out = torch.tensor([[[0.5, 1.5, 3.0]], [[1.25, 1.25, 1.25]]])
    loss, error = head.loss(out, wanted)
    each = [
        sum(abs(level - (z < q)) * (0.5 * (z - q) ** 2 if abs(z - q) <= 1 else abs(z - q) - 0.5) for z in wanted[0].tolist()) / 4
        for row in out[:, 0].tolist()
        for q, level in zip(row, (1 / 6, 3 / 6, 5 / 6), strict=True)
    ]
    torch.testing.assert_close(loss[:, 0], torch.tensor([sum(each[:3]) / 3, sum(each[3:]) / 3]))
    torch.testing.assert_close(error[:, 0], 1.25 - out[:, 0].mean(-1))


def test_a_categorical_critic_by_hand():
    """Two critics over the returns -1, 0 and 1 of one pair; the second has the lower mean, of which the target is made."""
    head = ensembles.categorical(3, -1.0, 1.0, 2)
    next_out = torch.tensor([[[0.25, 0.25, 0.5]], [[0.5, 0.25, 0.25]]]).log()
    torch.testing.assert_close(head.values(next_out), torch.tensor([[0.25], [-0.25]]))
    assert head.believe(next_out).item() == pytest.approx(-0.25)
    assert head.bound == 1.0
    wanted = head.wanted(next_out, torch.full((1,), 0.25), torch.full((1,), 0.5), torch.full((1,), 0.5), random.key(0))
    # 0.25 + 0.5 * (z - 0.5) moves -1, 0 and 1 to -0.5, 0 and 0.5
    torch.testing.assert_close(wanted, torch.tensor([[0.25, 0.25 + 0.25 + 0.125, 0.125]]))
    out = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 2.0, 3.0]]])
    loss, error = head.loss(out, wanted)
    torch.testing.assert_close(loss, -(wanted * torch.log_softmax(out, -1)).sum(-1))
    torch.testing.assert_close(error[0], torch.tensor([-0.125]))


def test_weights_before_a_normalisation_have_the_length_one():
    """From the start on and after each step; the others are free."""
    algo = make("sac unit", _probe().spec)
    init, step = fuse(algo, _probe())
    state = init(random.key(0))
    for _ in range(3):
        for name in ("hidden.0.weight", "hidden.1.weight"):
            norms = state.algo.params["critics"][name].norm(dim=-1)
            torch.testing.assert_close(norms, torch.ones_like(norms))
        state, _ = step(state)
    assert state.algo.updates > 0
    assert not torch.allclose(state.algo.params["critics"]["out.weight"].norm(dim=-1), torch.ones(()))


def test_both_ends_of_transitions_are_normalised_as_one_batch():
    """As torch's own functions do it, layer by layer; gradients go through the moments of both ends; and a policy sees the running
    moments, of which one in a hundred is new."""
    with torch.device("meta"):
        module = nets.BatchNormalizedPairs(BOX, 2, (5, 3), "relu")
    critics = ensembles.together(module, nets.SCHEMES["torch"], 2, ensembles.number(2), 0.99)
    assert critics.targets == ()
    params = TensorDict(critics=critics.init(random.key(0)), **critics.kept)
    x = random.normal(random.key(1), (2, 7, 4))
    obs, action = x.split(2, -1)
    it = Transitions(obs=obs[0], action=action[0], reward=x[0, :, 0], discount=x[0, :, 0], next_obs=obs[1])
    out, next_out, kept = critics.both(params["critics"], params, TensorDict(), it, action[1], random.key(2))

    def plain(params, features, statistics=None):
        for i in range(3):
            given = (None, None, True) if statistics is None else (*statistics[i], False)
            found.append(torch.stack([features.mean(0), features.var(0, unbiased=False)]))
            weight, bias = params[f"norms.{i}.weight"], params[f"norms.{i}.bias"]
            features = torch.nn.functional.batch_norm(features, *given[:2], weight, bias, given[2], eps=1e-3)
            layer = "out" if i == 2 else f"hidden.{i}"
            features = features @ params[f"{layer}.weight"].mT + params[f"{layer}.bias"]
            features = features if i == 2 else torch.relu(features)
        return features

    for k in (0, 1):
        lone, found = tree.index(params["critics"], k), []
        expected = plain(lone, x.flatten(0, 1))
        torch.testing.assert_close(torch.cat([out[k], next_out[k]]), expected)
        old = params["statistics"][k]
        torch.testing.assert_close(kept["statistics"][k], 0.99 * old + 0.01 * torch.cat(found, -1))
        its = kept["statistics"][k].split([4, 5, 3], -1)
        seen = critics.at(params.replace(statistics=kept["statistics"]), obs[0], action[0], random.key(3))
        torch.testing.assert_close(seen[k], plain(lone, x[0], its))

    def now(next_obs):
        return critics.both(params["critics"], params, TensorDict(), it.replace(next_obs=next_obs), action[1], random.key(2))[
            0
        ].sum()

    assert torch.func.grad(now)(obs[1]).abs().sum() > 0


def test_dropout_drops_a_part_and_keeps_the_mean():
    with torch.device("meta"):
        module = nets.PairValues(BOX, 2, (4000,), "relu", dropout=0.25)
    params = nets.init(module, random.key(0))
    params["out.weight"] = torch.ones_like(params["out.weight"])
    x = TensorDict(obs=torch.ones(1, 2), action=torch.ones(1, 2), noise=torch.ones(1, 4000))
    kept = nets.apply(module, params, x)
    found = nets.apply(module, params, x.replace(noise=random.uniform(random.key(1), (1, 4000))))
    assert found.item() == pytest.approx(0.75 * kept.item(), rel=0.05)
    assert found.item() != kept.item()


def test_actions_are_random_at_first_then_noisy_and_without_noise_in_evaluation():
    env = _probe()
    algo = make("td3", env.spec, noise_start=0.4, noise_end=0.0, total_steps=1000)
    state = algo.init(random.key(0))
    inputs = tree.expand(tree.map(lambda x: x[0], blank_inputs(env.spec, 1)), 5000)
    noise = vmap(algo.draw)(random.split(random.key(1), 5000))

    def act(steps):
        acting = algo.acting(state.replace(steps=torch.tensor(steps)))
        return algo.act(acting, inputs, algo.carry(5000), noise)[0], algo.mode(acting, inputs, algo.carry(5000))[0]

    first, best = act(0)
    assert (first.min() < 0.01, first.max() > 3.99, first.mean().item()) == (True, True, pytest.approx(2.0, abs=0.1))
    middle, same = act(500)
    assert torch.equal(best, same)
    assert (middle - best).std().item() == pytest.approx(2 * 0.2, abs=0.02)  # half the range times half the noise
    assert torch.equal(*act(1000))


BOX = gym.spaces.Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Discrete(3), r"action space: Discrete\(3\) is not a Box of floats, which continuous control needs"),
        (gym.spaces.Box(-np.inf, np.inf, (2,)), "has no bounds on some side; wrap it, as gymnasium.wrappers.RescaleAction does"),
        (gym.spaces.Box(0, 3, (2,), np.int64), "is not a Box of floats"),
    ],
)
def test_bad_spaces(name, space, message):
    with pytest.raises(ValueError, match=message):
        algos.make(name, EnvSpec("x", BOX, space))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("sac", {"n_quantiles": 3, "n_dropped": 3}, "SACConfig.n_dropped = 3 is not less than n_quantiles = 3"),
        ("xqc", {"n_quantiles": 25}, "SACConfig.n_atoms = 101 and n_quantiles = 25: one of them has to be 0"),
        ("xqc", {"v_min": 5.0}, "SACConfig.v_min = 5.0 is not less than v_max = 5.0"),
        ("sac", {"unit_weights": True}, "SACConfig.unit_weights = True is for critics with batch_norm"),
        ("crossq", {"norm": "layer"}, "SACConfig.norm = 'layer' is not for critics with batch_norm, only 'none' is"),
        ("sac", {"dropout": 1.0}, "SACConfig.dropout = 1.0 is not a number between 0.0 and 0.99"),
        ("sac", {"subset": 3}, "SACConfig.subset = 3 is more than n_critics = 2"),
        ("td3", {"subset": 0}, "TD3Config.subset = 0 is not an integer at least 1"),
        ("sac", {"utd": 0.3}, r"SACConfig: utd \* n_envs \* n_steps = 0.3 \* 1 \* 4 .* no multiple of policy_every = 2"),
        ("ddpg", {"policy_every": 8}, "no multiple of policy_every = 8"),
        ("sac", {"capacity": 10}, "SACConfig.capacity = 10 is less than batch_size = 256"),
        ("sac", {"temperature": -1.0}, "SACConfig.temperature = -1.0 is not a number at least 0.0"),
        ("sac", {"learning_starts": 2_000_000}, "SACConfig.learning_starts = 2000000 is more than total_steps = 1000000"),
    ],
)
def test_bad_config(name, config, message):
    spec = EnvSpec("x", BOX, BOX)
    with pytest.raises(ValueError, match=message):
        algos.make(name, spec, dataclasses.replace(algos.default_config(name, spec), **config))


@pytest.mark.torch_modules
def test_networks_of_ones_own():
    class Critic(torch.nn.Module):
        def __init__(self, size=1):
            super().__init__()
            self.layer = torch.nn.Linear(3, size)

        def forward(self, x):
            return self.layer(torch.cat([x["obs"], x["action"]], -1))

    env = _probe()
    config = dataclasses.replace(algos.default_config("sac", env.spec), **{**SMALL, "learning_starts": 32})
    algo = algos.make_sac(env.spec, config, torch.nn.Linear(2, 2), Critic())
    init, step = fuse(algo, env)
    state, info = steps(step, init(random.key(0)), 3)
    assert state.algo.params["critics"]["layer.weight"].shape == (2, 1, 3)
    assert torch.isfinite(info["critic_loss"])
    with pytest.raises(
        ValueError, match=r"net: the action parameters of 2 observations has shape \[2, 3\], but \[2, 2\] is wanted"
    ):
        algos.make_sac(env.spec, config, torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"net: the values of 2 observations has shape \[2, 4\]"):
        algos.make_sac(env.spec, config, None, Critic(4))


def test_one_lane_of_one_environment_compiles():
    """Slices of a batch along axes of one element have strides that a new tensor has not."""
    algo = make("ddpg", _probe().spec, n_envs=1, learning_starts=4, hidden=(4,), utd=0.5, batch_size=4)
    blank = tree.map(lambda x: x.expand(4, *x.shape).clone(), blank_inputs(algo.spec, 1))
    zeros = torch.zeros(4, 1)
    flags = {"terminated": zeros.bool(), "truncated": zeros.bool(), "valid": ~zeros.bool()}
    empty = {name: TensorDict() for name in ("extras", "carry", "episode")}
    batch = Batch(inputs=blank, action=zeros[..., None], reward=zeros, last=tree.index(blank, -1), **flags, **empty)
    batch = tree.map(lambda x: x.expand(1, *x.shape).clone(), batch)
    start = vmap(algo.init)(random.split(random.key(0), 1))
    state, _ = compile(vmap(algo.update))(tree.map(torch.clone, start), batch)
    expected, _ = vmap(algo.update)(start, batch)
    assert_trees_equal(state.params, expected.params, rtol=1e-4, atol=1e-5)
