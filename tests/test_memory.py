"""A policy's memory on every path: what it was before, between and after the steps, whoever takes them and learns from them."""

import itertools
from functools import partial

import pytest
import torch
from conftest import assert_trees_equal
from samplers.test_arrangements import arrangements, collect
from tensordict import TensorDict
from torch import nn
from worlds import GRU, RHYTHM, Rhythm, Walk, counting, gru, make_gru_a2c, make_gru_ppo

from purerl import (
    A2CConfig,
    Inputs,
    PPOConfig,
    compile,
    compiling,
    distributions,
    envs,
    fuse,
    make_a2c,
    make_policy,
    make_ppo,
    nets,
    random,
    rollout,
    samplers,
    training,
    tree,
    vmap,
)
from purerl.compiling import programs
from purerl.evaluate import _film, evaluate
from purerl.losses import gae
from purerl.rollout import init_actors
from purerl.transforms import trace

WALK = envs.host(Walk).spec


def counts(batches, n_envs):
    """What the counting policy should have counted, step by step."""
    n = torch.zeros(n_envs, dtype=torch.int64)
    for batch in batches:
        for t in range(len(batch.reward)):
            n = torch.where(batch.inputs.first[t], 0, n)
            yield n
            n = n + 1


def deterministic(spec):
    """The GRU policy that takes its likeliest action, and tells its logits."""
    net = gru(spec)
    policy = make_policy(spec, net)

    def act(params, inputs, carry, noise):
        (logits, _), carry = nets.step(net, params, inputs, carry)
        return logits.argmax(-1), TensorDict(logits=logits), carry

    return policy._replace(act=act)


@pytest.mark.parametrize("n_seeds", [0, 2])
def test_every_arrangement_gives_the_same_batches_and_gradients(n_seeds):
    """The counting policy and the GRU: bit for bit, and the log-probabilities that the learner computes are those acted with."""
    key = random.split(random.key(3), n_seeds) if n_seeds else random.key(3)
    init_keys = [random.split(random.key(i), n_seeds) if n_seeds else random.key(i) for i in range(4)]
    for policy in (counting(WALK), make_policy(WALK, gru(WALK))):
        states = [(vmap(policy.init) if n_seeds else policy.init)(k) for k in init_keys]
        batches = {name: collect(feed(policy, 5, 6, key), states) for name, feed in arrangements(Walk, 5, 2)}
        late = collect(samplers.buffered(Walk, policy, 5, 6, key, of=samplers.serial), states)
        for got in batches.values():
            for a, b in zip(batches["serial"], got, strict=True):
                assert_trees_equal(a, b)
                if "log_prob" in a.extras.keys() and not n_seeds:  # noqa: SIM118
                    assert_trees_equal(gradient(states[0], a), gradient(states[0], b))
        assert_trees_equal(late[0], batches["serial"][0])
        assert set(batches) == {"serial", "parallel", "central", "native", "alternating", "no overlap"}
        if not n_seeds and "count" in batches["serial"][0].extras.keys():  # noqa: SIM118
            counted = [batch.extras["count"][t] for batch in batches["serial"] for t in range(6)]
            assert torch.equal(torch.stack(counted), torch.stack([*counts(batches["serial"], 5)]))
            assert batches["serial"][0].carry["count"].tolist() == [7] * 5
            assert (batches["serial"][1].carry["count"] > 0).all()


def gradient(params, batch):
    net, dist = gru(WALK), distributions.for_space(WALK.action_space)

    def loss(params):
        (logits, value), _ = net.forward(params, batch.inputs, batch.carry)
        return (dist.log_prob(logits, batch.action) * batch.reward + value**2).mean()

    return torch.func.grad(loss)(params)


def test_the_learner_sees_what_was_acted_with():
    policy, net, dist = make_policy(WALK, gru(WALK)), gru(WALK), distributions.for_space(WALK.action_space)
    state = policy.init(random.key(0))
    batches = collect(samplers.serial(Walk, policy, 5, 6, random.key(1)), [state] * 3)
    assert sum(batch.inputs.first[1:].sum() for batch in batches) > 5
    for batch, following in itertools.pairwise(batches):
        (logits, _), carry = net.forward(state, batch.inputs, batch.carry)
        torch.testing.assert_close(dist.log_prob(logits, batch.action), batch.extras["log_prob"], rtol=1e-4, atol=1e-5)
        assert_trees_equal(carry, following.carry, rtol=1e-4, atol=1e-5)
    (wrong, _), _ = net.forward(state, batches[1].inputs, tree.map(torch.zeros_like, batches[1].carry))
    assert not torch.allclose(dist.log_prob(wrong, batches[1].action), batches[1].extras["log_prob"], atol=1e-3)


@pytest.mark.parametrize("make", [counting, deterministic])
def test_fragments_of_four_and_of_sixteen_steps_give_the_same_actions(make):
    policy = make(WALK)
    state = policy.init(random.key(2))
    found = []
    for n_steps in (4, 16):
        batches = collect(samplers.serial(Walk, policy, 3, n_steps, random.key(0)), [state] * (32 // n_steps))
        found.append(tree.concatenate([tree.replace(x, carry=TensorDict(), last=TensorDict()) for x in batches]))
        assert found[-1].inputs.first.sum() > 6
    assert_trees_equal(*found)


@pytest.mark.parametrize("make", [counting, deterministic])
def test_fused_fragments_of_four_and_of_sixteen_steps_give_the_same_actions(make):
    policy = make(RHYTHM.spec)
    state = policy.init(random.key(2))
    found = []
    for n_steps in (4, 16):
        actors, batches = init_actors(policy, RHYTHM, 3, random.key(0)), []
        for _ in range(32 // n_steps):
            actors, batch = rollout(policy, RHYTHM, state, actors, n_steps, random.key(1))
            batches.append(tree.replace(batch, carry=TensorDict(), last=TensorDict()))
        found.append(tree.concatenate(batches))
    assert_trees_equal(*found)
    if make is counting:
        assert torch.equal(found[0].extras["count"], torch.stack([*counts(found[:1], 3)]))
        assert found[0].valid.sum() == found[0].reward.sum()


def small(make, **config):
    kinds = {make_gru_ppo: PPOConfig, make_gru_a2c: A2CConfig}
    numbers = {"n_envs": 4, "n_steps": 6, "lr": 1e-2, **({"epochs": 2, "n_minibatches": 2} if make is make_gru_ppo else {})}
    return make(RHYTHM.spec, kinds[make](**{**numbers, **config}))


def slow(module, params, inputs, carry):
    """A network with memory over `[T, B]`, one environment and one step after the other."""
    columns = []
    for b in range(inputs.first.shape[1]):
        h, outs = carry["h"][b : b + 1], []
        for t in range(len(inputs.first)):
            now = Inputs(*[x[t, b : b + 1] for x in (inputs.obs, inputs.prev_action, inputs.prev_reward, inputs.first)])
            if now.first:
                h = torch.zeros_like(h)
            (logits, value), after = nets.apply(module, params, tree.map(lambda x: x[None], now), TensorDict(h=h))
            h = after["h"]
            outs.append((logits[0, 0], value[0, 0]))
        columns.append([torch.stack(x) for x in zip(*outs, strict=True)])
    return [torch.stack(x, 1) for x in zip(*columns, strict=True)]


@pytest.mark.parametrize("make", [make_gru_ppo, make_gru_a2c])
def test_an_update_is_that_of_a_slow_reference(make):
    """Minibatches are of environments; gradients flow through the memory from each fragment's start, and not further."""
    algo = small(make)
    config, dist = algo.config, distributions.for_space(RHYTHM.spec.action_space)
    with torch.device("meta"):
        module = GRU(3, 3)
    state, actors = algo.init(random.key(0)), init_actors(algo, RHYTHM, 4, random.key(1))
    for i in range(2):  # the second fragment begins in the middle of episodes
        actors, batch = rollout(algo, RHYTHM, state, actors, 6, random.key(2 + i))
    assert batch.carry["h"].abs().min() > 0
    assert batch.inputs.first.any()
    after, info = algo.update(state, batch)

    whole = tree.map(lambda x, last: torch.cat([x, last[None]]), batch.inputs, batch.last)
    _, values = slow(module, state.params, whole, batch.carry)
    discounts = config.gamma * (~batch.terminated).float()
    advantage = gae(batch.reward, discounts, batch.terminated | batch.truncated, values, config.gae_lambda)
    target = advantage + values[:-1]

    def loss(params, rows):
        logits, value = slow(module, params, tree.map(lambda x: x[:, rows], batch.inputs), tree.index(batch.carry, rows))
        weight, a = batch.valid[:, rows].float(), advantage[:, rows]
        log_prob = dist.log_prob(logits, batch.action[:, rows])
        if make is make_gru_ppo:
            a = a - (a * weight).sum() / weight.sum()
            a = a / (((a**2 * weight).sum() / weight.sum()).sqrt() + 1e-8)
            ratio = (log_prob - batch.extras["log_prob"][:, rows]).exp()
            actor = -torch.minimum(ratio * a, ratio.clamp(1 - config.clip, 1 + config.clip) * a)
            moved = values[:-1][:, rows] + (value - values[:-1][:, rows]).clamp(-config.clip, config.clip)
            critic = 0.5 * torch.maximum((value - target[:, rows]) ** 2, (moved - target[:, rows]) ** 2)
        else:
            actor, critic = -log_prob * a, 0.5 * (value - target[:, rows]) ** 2
        total = actor + config.vf_coef * critic - config.ent_coef * dist.entropy(logits)
        return (total * weight).sum() / weight.sum()

    params = TensorDict({name: x.clone().requires_grad_() for name, x in state.params.items()})
    if make is make_gru_ppo:
        orders = [random.permutation(key, 4) for key in random.split(state.key, 3)[1:]]
        minibatches = [rows for order in orders for rows in order.reshape(2, 2)]
        optimizer = torch.optim.Adam(params.values(), lr=config.lr, eps=config.adam_eps)
    else:
        minibatches = [torch.arange(4)]
        optimizer = torch.optim.RMSprop(params.values(), lr=config.lr, alpha=config.rms_decay, eps=config.opt_eps)
    for rows in minibatches:
        optimizer.zero_grad()
        loss(params, rows).backward()
        nn.utils.clip_grad_norm_(params.values(), config.max_grad_norm)
        optimizer.step()
    for name, x in after.params.items():
        torch.testing.assert_close(x, params[name].detach(), rtol=1e-4, atol=1e-5)
    assert all(torch.isfinite(x) for x in info.values())
    assert not torch.allclose(after.params["old.weight"], state.params["old.weight"], atol=1e-4)  # through time


def test_a_memory_that_nobody_reads_changes_no_gradient():
    """The same module with an idle memory: A2C, which learns from the whole batch, comes to the same parameters."""
    spec = RHYTHM.spec
    with torch.device("meta"):
        module = nets.ActorCritic(spec.observation_space, spec.action_space, (8,), "tanh", shared=False)
    plain = nets.feed_forward(module)

    def forward(params, inputs, carry):
        return plain.forward(params, inputs, carry)[0], TensorDict(n=carry["n"] + len(inputs.first))

    idle = nets.Network(plain.init, forward, lambda n: TensorDict(n=torch.zeros(n)))
    found = []
    for net in (module, plain, idle):
        algo = make_a2c(spec, A2CConfig(n_envs=4, n_steps=6), net)
        init, step = fuse(algo, RHYTHM)
        state, _ = step(init(random.key(0)))
        found.append(state)
    assert_trees_equal(found[0], found[1])
    assert_trees_equal(found[0].algo.params, found[2].algo.params, rtol=1e-5, atol=1e-6)
    assert found[2].actors.carry["n"].tolist() == [6.0] * 4


def test_what_a_network_reads_besides_the_observation_reaches_the_minibatches():
    """A network without memory that reads the last action and reward: its ratios are 1 before the first step."""
    spec = RHYTHM.spec
    with torch.device("meta"):
        module = nn.Linear(5, 4)

    def forward(params, inputs, carry):
        parts = [inputs.obs, inputs.prev_action[..., None].float(), inputs.prev_reward[..., None]]
        out = nets.apply(module, params, torch.cat(parts, -1)) * (~inputs.first[..., None]).float()
        return (out[..., :3], out[..., 3]), carry

    net = nets.Network(lambda key: nets.init(module, key), forward)
    algo = make_ppo(spec, PPOConfig(n_envs=4, n_steps=6, epochs=1, n_minibatches=1), net)
    init, step = fuse(algo, RHYTHM)
    _, info = step(init(random.key(0)))
    torch.testing.assert_close(info["approx_kl"], torch.tensor(0.0), rtol=0, atol=1e-7)


@pytest.mark.parametrize("make", [make_gru_ppo, make_gru_a2c])
def test_seeds_compile_once_and_each_is_as_alone(make, monkeypatch):
    algo = small(make)
    init, step = fuse(algo, RHYTHM)
    keys = random.split(random.key(0), 3)
    built, build = [], programs.build
    monkeypatch.setattr(programs, "build", lambda *args: built.append(None) or build(*args))
    compiled, state = compile(vmap(step)), vmap(init)(keys)
    for _ in range(3):
        state, _ = compiled(state)
    assert len(built) == 1
    for i in range(3):
        lone = init(keys[i])
        for _ in range(3):
            lone, _ = step(lone)
        assert_trees_equal(lone, state[i], rtol=1e-4, atol=1e-5)


def test_minibatches_that_environments_cannot_be_shared_between():
    with pytest.raises(ValueError, match=r"^PPOConfig.n_minibatches = 4 does not divide n_envs = 6, as it must where the network"):
        small(make_gru_ppo, n_envs=6, n_minibatches=4)


@pytest.mark.parametrize("env", [RHYTHM, envs.host(Rhythm)])
def test_evaluation_and_video_remember(env):
    policy = counting(env.spec)
    states = vmap(policy.init)(random.split(random.key(0), 2))
    states["shift"] = torch.tensor([0, 1])
    found = evaluate(policy, env, states, 3, seed=0, steps=30)  # several episodes each
    assert all(len(x) >= 6 for x in found.returns)
    assert {*found.returns[0]} == {5.0}
    assert {*found.returns[1]} == {0.0}
    net = deterministic(env.spec)
    assert len(evaluate(net, env, vmap(net.init)(random.split(random.key(0), 2)), 3, seed=0).returns) == 2


def test_a_film_remembers():
    env = envs.host(partial(Rhythm))
    env = env._replace(make_drawn=env.make)
    policy = counting(env.spec)
    frames, total, _ = _film(policy, env, policy.acting(policy.init(random.key(0))), 0)
    assert (len(frames), total) == (6, 5.0)


@pytest.mark.parametrize("env", ["CartPole-v1", "worlds:Rhythm-v0"])
def test_a_run_with_memory_goes_on_where_it_stopped(tmp_path, uncompiled, env):
    """Bit for bit where the environment is pure; elsewhere its episodes, and what was remembered of them, begin anew."""
    evaluating = training.Evaluating(eval_every=64, eval_episodes=2)
    run = training.plan("worlds:make_gru_ppo", env, 2, 160, {"lr": [1e-3, 1e-2]}, evaluating=evaluating)
    states = []
    for name in ("whole", "cut"):
        out = tmp_path / name
        training.prepare(out, run)

        def stop(progress, name=name):
            if name == "cut" and progress.steps >= 64:
                raise KeyboardInterrupt

        if name == "cut":
            with pytest.raises(KeyboardInterrupt):
                training.train(run, out, report=stop)
        training.train(run, out, resume=name == "cut")
        states.append(training.load_state(out, run, *training.build(run))[0])
    if env == "CartPole-v1":
        assert states[0].learner.actors.carry["h"].shape == (4, 4, 8)
        assert states[0].learner.actors.carry["h"].abs().sum() > 0
        assert_trees_equal(*states)
    assert states[1].updates.tolist() == [5] * 4


def test_another_memory_than_went_in_is_named():
    spec = RHYTHM.spec
    policy = counting(spec)

    def swapped(*args):
        action, extras, carry = policy.act(*args)
        return action, extras, TensorDict(counts=carry["count"])

    wrong = policy._replace(act=swapped)
    actors = init_actors(wrong, RHYTHM, 2, random.key(0))
    message = r"^carry: the memory after a step is \{'counts': .*\}, but \{'count': .*\} went in$"
    with pytest.raises(ValueError, match=message):
        rollout(wrong, RHYTHM, wrong.init(random.key(0)), actors, 2, random.key(0))
    with pytest.raises(ValueError, match=message):
        samplers.serial(Rhythm, wrong, 2, 2, random.key(0))
    net = gru(spec)
    forgetful = net._replace(forward=lambda *args: (net.forward(*args)[0], TensorDict()))
    for make in (make_ppo, make_a2c, lambda spec, net: make_policy(spec, net)):
        with pytest.raises(ValueError, match=r"^carry: the memory after a step is \{\}, but \{'h'"):
            make(spec, net=forgetful)


def test_unrolling_resets_where_an_episode_begins():
    """Against numbers by hand, and its gradient stops there."""
    inputs = Inputs(
        obs=torch.tensor([[1.0], [2.0], [3.0]]),
        prev_action=torch.zeros(3, 1),
        prev_reward=torch.zeros(3, 1),
        first=torch.tensor([[False], [True], [False]]),
    )

    def total(carry, obs):
        def add(now, carry):
            n = carry["n"] + now.obs
            return n, TensorDict(n=n)

        out, after = nets.unroll(add, TensorDict(n=torch.full((1,), 10.0)), tree.replace(inputs, obs=obs), TensorDict(n=carry))
        return out, after["n"]

    out, after = total(torch.tensor([5.0]), inputs.obs)
    assert out.flatten().tolist() == [6.0, 12.0, 15.0]
    assert after.tolist() == [15.0]
    grads = torch.func.grad(lambda c, x: total(c, x)[1].sum(), argnums=(0, 1))(torch.tensor([5.0]), inputs.obs)
    assert grads[0].tolist() == [0.0]
    assert grads[1].flatten().tolist() == [0.0, 1.0, 1.0]


@pytest.mark.torch_modules
def test_what_a_network_with_memory_returns_is_checked():
    net = gru(RHYTHM.spec)
    flat = net._replace(forward=lambda *args: ((net.forward(*args)[0][0], net.forward(*args)[0][1][0]), net.forward(*args)[1]))
    with pytest.raises(ValueError, match=r"^net: the value of 1 x 2 observations has shape \[2\], but \[1, 2\] is wanted$"):
        make_ppo(RHYTHM.spec, net=flat)
    wrong = nets.feed_forward(nn.Unflatten(0, (1, -1)))
    with pytest.raises(ValueError, match=r"^net: an output of 6 observations has shape \[1, 6, 3\], not \[6, \.\.\.\]$"):
        wrong.forward(TensorDict(), Inputs(torch.zeros(2, 3, 3), *[torch.zeros(2, 3)] * 3), TensorDict())


def test_a_memory_is_where_its_key_is():
    env = envs.make("CartPole-v1")
    for policy in (counting(env.spec), make_policy(env.spec, gru(env.spec))):
        actors = init_actors(policy, env, 2, random.key(0, "meta"))
        assert {x.device.type for x in tree.leaves(actors)} == {"meta"}


@pytest.mark.skipif(not compiling.is_tested(), reason="a version of torch that is not traced")
@pytest.mark.parametrize("make", [make_ppo, make_a2c])
def test_what_a_network_does_not_read_costs_nothing(make):
    """Of a fragment's inputs, the program of a feed-forward network reads the observations alone, that of the GRU all of them."""
    env = envs.make("CartPole-v1")
    config = A2CConfig(n_envs=4, n_steps=4, hidden=(8,)) if make is make_a2c else PPOConfig(n_envs=4, n_steps=4, hidden=(8,))
    for net, read in ((None, ["obs"]), (gru(env.spec), ["obs", "prev_action", "prev_reward", "first"])):
        algo = make(env.spec, config, net)
        state = algo.init(random.key(0))
        _, batch = rollout(algo, env, state, init_actors(algo, env, 4, random.key(1)), 4, random.key(2))
        used = trace(algo.update, state, batch).used[len(tree.leaves(state)) :]
        assert [name for name, x in zip(("obs", "prev_action", "prev_reward", "first"), used, strict=False) if x] == read
