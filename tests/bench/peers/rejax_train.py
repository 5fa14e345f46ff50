"""rejax: whole trainings of seeds as one compiled program. Arguments: ppo, dqn or sac, environment, seeds, steps a seed."""

import sys

import jax
import rejax
from turns import serve

name, env, seeds, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
SETTINGS = {
    "ppo": {
        "num_envs": 4,
        "num_steps": 128,
        "num_epochs": 4,
        "num_minibatches": 4,
        "learning_rate": 2.5e-4,
        "agent_kwargs": {"activation": "tanh"},
    },
    "dqn": {
        "num_envs": 1,
        "buffer_size": 10_000,
        "fill_buffer": 1,
        "batch_size": 128,
        "learning_rate": 2.5e-4,
        "agent_kwargs": {"activation": "relu"},
    },
    "sac": {"num_envs": 1, "buffer_size": 100_000, "fill_buffer": 1, "batch_size": 256, "hidden_layer_sizes": (256, 256)},
}
algo = rejax.get_algo(name).create(env=env, total_timesteps=steps, eval_freq=steps, skip_initial_evaluation=True, **SETTINGS[name])
algo = algo.replace(eval_callback=lambda a, ts, rng: ())
train = jax.jit(jax.vmap(algo.train)).lower(jax.random.split(jax.random.PRNGKey(0), seeds)).compile()
n = 0


def turn() -> float:
    global n
    n += 1
    jax.block_until_ready(train(jax.random.split(jax.random.PRNGKey(n), seeds)))
    return seeds * steps


turn()
serve(turn)
