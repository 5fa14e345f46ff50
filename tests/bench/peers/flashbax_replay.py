"""flashbax's prioritized replay: sample and write back, many turns in one compiled loop.

Arguments: items, batch, turns, and 1 to compute importance weights too: XLA then copies the tree, and takes seven times as long.
"""

import sys

import flashbax
import jax
import jax.numpy as jnp
from turns import serve

n_items, batch, turns, weighted = map(int, sys.argv[1:])
CHUNK = 10_000
buffer = flashbax.make_prioritised_flat_buffer(n_items, batch, batch, add_sequences=True, priority_exponent=0.6, device="cpu")
step = {"obs": jnp.zeros(4), "action": jnp.zeros((), jnp.int32), "reward": jnp.zeros(()), "done": jnp.zeros((), bool)}
state = buffer.init(step)
add = jax.jit(buffer.add, donate_argnums=0)
chunk = jax.tree.map(lambda x: jnp.zeros((CHUNK, *x.shape), x.dtype), step)
for _ in range(n_items // CHUNK):
    state = add(state, chunk)


def one(state, key):
    keys = jax.random.split(key)
    sample = buffer.sample(state, keys[0])
    state = buffer.set_priorities(state, sample.indices, jax.random.uniform(keys[1], (batch,)) + 0.01)
    weights = (n_items * sample.probabilities) ** -0.4 if weighted else jnp.ones(batch)
    return state, weights.sum() / weights.max() + sum(x.sum() for x in jax.tree.leaves(sample.experience))


many = jax.jit(lambda state, key: jax.lax.scan(one, state, jax.random.split(key, turns)), donate_argnums=0)
n = 0


def turn() -> float:
    global state, n
    state, out = many(state, jax.random.PRNGKey(n))
    out.block_until_ready()
    n += 1
    return turns


turn()
serve(turn)
