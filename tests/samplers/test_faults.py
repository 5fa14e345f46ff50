"""Whatever goes wrong is named, and nothing is left behind."""

import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import assert_trees_equal
from worlds import (
    Brittle,
    Bytes,
    Family,
    Faulty,
    Informed,
    Lacking,
    OldReset,
    OldStep,
    Outside,
    Retentive,
    Seedless,
    Unmade,
    Walk,
    Whereabouts,
)

from purerl import envs, make_a2c, random, samplers
from purerl.algos import A2CConfig

KINDS = {
    "serial": samplers.serial,
    "parallel": partial(samplers.parallel, n_workers=2),
    "central": partial(samplers.central, n_workers=2),
    "buffered": partial(samplers.buffered, n_workers=2),
}
CONFIG = A2CConfig(n_envs=4, n_steps=5, hidden=(8,))


def walk_algo():
    return make_a2c(envs.host(Walk).spec, CONFIG)


def run(kind, make, n_batches=4, algo=None, **options):
    algo = algo or walk_algo()
    with kind(make, algo, 4, 5, random.key(0), **options) as feed:
        feed.publish(algo.init(random.key(1)))
        return [next(feed) for _ in range(n_batches)], feed.lost


def flagged(tmp_path, fault, **kwargs):
    """Environments of which one goes wrong once."""
    (tmp_path / "flag").write_text("")
    return partial(Faulty, fault, flag=str(tmp_path / "flag"), **kwargs)


# The first ones with every arrangement of processes; they share what steps environments, so one is enough for the rest.
FAULTS = [
    ("raise", r"environment [0-3]: step raised ZeroDivisionError: the world ended"),
    ("shape", r"environment [0-3]: observation has shape \(4,\), but its space has \(3,\)"),
    ("dtype", r"environment [0-3]: observation has dtype complex64, but its space has float32"),
    ("nan", r"environment [0-3]: observation is NaN"),
    ("reward", r"environment [0-3]: reward is NaN"),
    ("word", r"environment [0-3]: step returned the reward 'much', which is not a number"),
    ("rewards", r"environment [0-3]: step returned the reward array\(\[3., 7.\]\), which is not a number"),
    ("reward dict", r"environment [0-3]: step returned the reward \{'goal': 1.0\}, which is not a number"),
]
MORE_FAULTS = [
    ("inf", r"environment [0-3]: observation is inf after step [1-5] of 5 of the batch, which is not finite"),
    ("ragged", r"environment [0-3]: observation is \[\[1.0\], .*, which is no array"),
    ("infinite reward", r"environment [0-3]: reward is -inf after step [1-5] of 5 of the batch"),
    (
        "large reward",
        r"environment [0-3]: reward is 1e\+300 after step [1-5] of 5 of the batch, which is not finite in float32",
    ),
    ("reward of one axis", r"reward array\(\[3.\]\), which is not a number: it has shape \(1,\), return float\(reward\)"),
    ("no reward", r"environment [0-3]: step returned the reward None, which is not a number"),
    ("complex reward", r"environment [0-3]: step returned the reward 1j, which is not a number"),
    ("terminated", r"environment [0-3]: step returned terminated = array\(\[.*\]\), which is not True or False"),
    ("truncated", r"environment [0-3]: step returned truncated = 'no', which is not True or False"),
    ("stop", r"environment [0-3]: step raised StopIteration"),
    ("quit", r"environment [0-3]: step raised SystemExit: 0"),
]


@pytest.mark.parametrize(
    ("kind", "fault", "message"), [(kind, *f) for kind in KINDS for f in FAULTS] + [("serial", *f) for f in MORE_FAULTS]
)
def test_an_environment_that_does_wrong_is_named(kind, fault, message, tmp_path):
    with pytest.raises(samplers.EnvError, match=message):
        run(KINDS[kind], flagged(tmp_path, fault))
    assert not children()


@pytest.mark.parametrize("kind", ["serial", "parallel"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            OldReset,
            r"environment [0-3]: reset returned ndarray, but Gymnasium's returns \(observation, info\); for env.*shimmy",
        ),
        (
            Seedless,
            r"environment [0-3]: reset raised TypeError: .*unexpected keyword argument 'seed'; for env.*shimmy",
        ),
        (
            OldStep,
            r"environment [0-3]: step returned 4 values, but Gymnasium's returns \(observation, reward, terminated, trunc.*shimmy",
        ),
        (Lacking, r"environment [0-3]: the observation lacks \['pair'\]\[0\]; it has 'x'"),
        (Bytes, r"environment [0-3]: observation is \[200   0\], which int8 cannot hold"),
        (
            partial(Outside, "discrete"),
            r"environment [0-3]: observation is 4 after step 3 of 5 of the batch, outside its space Discrete",
        ),
        (
            partial(Outside, "multi"),
            r"environment [0-3]: observation is \[4 0\] after step 3 of 5 of the batch, outside its space Multi",
        ),
        (
            partial(Outside, "binary"),
            r"environment [0-3]: observation is \[2 0\] after step 3 of 5 of the batch, outside its space Multi",
        ),
        (
            partial(Outside, "nested"),
            r"environment [0-3]: observation\['n'\] is 4 after step 3 of 5 of the batch, outside its space Disc",
        ),
    ],
    ids=["old reset", "no seed", "old step", "a key too few", "bytes", "discrete", "multi-discrete", "multi-binary", "nested"],
)
def test_an_environment_of_another_kind_is_named(kind, make, message):
    with pytest.raises(samplers.EnvError, match=message):
        run(KINDS[kind], make, algo=make_a2c(envs.host(make).spec, CONFIG))


@pytest.mark.parametrize("kind", ["serial", "parallel"])
@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"depth": {"x": 1.0}}, r"environment [0-3]: its info 'depth' is \{'x': 1.0\} at the end of an episode, not one number"),
        ({"depth": [1.0, 2.0]}, r"environment [0-3]: its info 'depth' is \[1.0, 2.0\] at the end of an episode, not one number"),
        ({"depth": "deep"}, r"environment [0-3]: its info 'depth' is 'deep' at the end of an episode, not one number"),
        ({"height": 1.0}, r"environment [0-3]: its info has no 'depth' at the end of an episode; it has height"),
        (None, r"environment [0-3]: its info at the end of an episode is None, not a dict with 'depth'"),
    ],
    ids=["dict", "list", "word", "missing", "None"],
)
def test_an_info_that_is_no_number_is_named(kind, info, message):
    with pytest.raises(samplers.EnvError, match=message):
        run(KINDS[kind], partial(Informed, info), infos=("depth",))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", r"environment [0-3]: observation is NaN"),
        ("inf", r"environment [0-3]: observation is inf"),
        ("reward", r"environment [0-3]: reward is NaN"),
        ("infinite reward", r"environment [0-3]: reward is -inf"),
        ("large reward", r"environment [0-3]: reward is inf after step"),
        ("rewards", r"environments 0 to 3: step raised"),
        ("reward dict", r"environments 0 to 3: step raised TypeError: float\(\) argument must be"),
        ("raise", r"environments 0 to 3: step raised ZeroDivisionError: the world ended"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_vector_environment_that_does_wrong_is_named(fault, message, tmp_path):
    def native(make, *args, **options):
        return samplers.native(lambda n: gym.vector.SyncVectorEnv([make] * n), *args, **options)

    with pytest.raises(samplers.EnvError, match=message):
        run(native, flagged(tmp_path, fault))


@pytest.mark.parametrize("kind", ["serial", "parallel", "central"])
def test_an_environment_that_cannot_be_made_is_named(kind, tmp_path):
    (tmp_path / "flag").write_text("")
    make = partial(Unmade, str(tmp_path / "flag"))
    host = envs.host(make)
    with pytest.raises(samplers.EnvError, match=r"environment [0-3]: its making raised LookupError: no file"):
        run(KINDS[kind], host)


def test_an_environment_that_cannot_be_closed_is_named():
    class Stuck(Walk):
        def close(self):
            raise RuntimeError("cannot close")

    with pytest.warns(UserWarning, match=r"environment [0-3]: close raised RuntimeError: cannot close"):
        assert len(run(samplers.serial, Stuck)[0]) == 4


class Crowd(gym.vector.VectorEnv):
    """Four environments whose rewards, ends or observations are what they should not be."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
    num_envs = 4
    single_observation_space, single_action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, **wrong):
        self.wrong = wrong

    def reset(self, seed=None, options=None):
        return np.zeros((4, 1), np.float32), {}

    def step(self, actions):
        no = np.zeros(4, bool)
        right = {"obs": np.zeros((4, 1), np.float32), "reward": np.zeros(4), "terminated": no, "truncated": no, "info": {}}
        return tuple({**right, **self.wrong}.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reward": np.zeros((4, 2))}, r"environments 0 to 3: step returned the reward with shape \(4, 2\) and dtype float64"),
        ({"reward": np.zeros(3)}, r"environments 0 to 3: step returned the reward with shape \(3,\)"),
        (
            {"reward": np.array(["a"] * 4)},
            r"step returned the reward with shape \(4,\) and dtype <U1, which is not one number each",
        ),
        ({"terminated": np.zeros(4)}, r"step returned the terminated with shape \(4,\) and dtype float64"),
        ({"obs": np.zeros((4, 3))}, r"environments 0 to 3: observations have shape \(4, 3\), but their space has \(4, 1\)"),
        (
            {"obs": np.zeros((4, 1), complex)},
            r"environments 0 to 3: observations have dtype complex128, but their space has float32",
        ),
    ],
)
def test_what_a_vector_environment_returns_is_checked(wrong, message):
    vec = Crowd(**wrong)
    with pytest.raises(samplers.EnvError, match=message):
        run(samplers.native, vec, algo=make_a2c(envs.vector_host(vec).spec, CONFIG))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (
            {"depth": np.ones(4), "_depth": np.array([True, True, False, True])},
            r"environment 2: its info has no 'depth' at the end",
        ),
        (
            {"depth": np.array([1.0, None, 2.0, 3.0])},
            r"environment 1: its info 'depth' is None at the end of an episode, not one number",
        ),
        ({"depth": {"x": np.ones(4)}, 7: np.ones(4)}, r"environment 0: its info has no 'depth' at the end of an episode; it has 7"),
        ({"depth": np.arange(4.0), 7: np.ones(4)}, None),
    ],
)
def test_what_a_vector_environment_says_of_each_environment(info, message):
    vec = Crowd(info=info, terminated=np.ones(4, bool))
    algo = make_a2c(envs.vector_host(vec).spec, CONFIG)
    if message is None:
        batches, _ = run(samplers.native, vec, 1, algo, infos=("depth",))
        assert batches[0].episode["depth"][0].tolist() == [0.0, 1.0, 2.0, 3.0]
    else:
        with pytest.raises(samplers.EnvError, match=message):
            run(samplers.native, vec, 1, algo, infos=("depth",))


@pytest.mark.parametrize("kind", ["serial", "parallel"])
def test_an_environment_may_have_processes_of_its_own(kind):
    """They end with it, also when it is killed and cannot say good-bye."""
    algo = make_a2c(envs.host(Family).spec, CONFIG)
    with KINDS[kind](Family, algo, 4, 5, random.key(0)) as feed:
        feed.publish(algo.init(random.key(1)))
        pids = {int(pid) for pid in next(feed).last.obs.flatten()}
        assert len(pids) == 4
        assert all(map(alive, pids))
        if kind == "parallel":
            os.kill(children()[0], signal.SIGKILL)
            time.sleep(0.2)
            with pytest.warns(UserWarning, match="SIGKILL"):
                pids |= {int(pid) for pid in next(feed).last.obs.flatten()}
            assert len(pids) > 4
    assert not any(map(alive, pids))


def test_workers_find_the_surroundings_of_the_moment(tmp_path, monkeypatch):
    algo = make_a2c(envs.host(Whereabouts).spec, CONFIG)
    for number in (1.0, 2.0):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "here.txt").write_text("")
        monkeypatch.setenv("PURERL_TEST", str(number))
        monkeypatch.chdir(folder)
        for kind in ("serial", "parallel", "central"):
            with KINDS[kind](Whereabouts, algo, 4, 5, random.key(0)) as feed:
                feed.publish(algo.init(random.key(1)))
                assert next(feed).last.obs.tolist() == [[number, 1.0]] * 4, kind


PIPED = """
from functools import partial
import gymnasium as gym, numpy as np
from purerl import envs, make_a2c, random, samplers
from purerl.algos import A2CConfig

class Mine(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None): return np.zeros(1, np.float32), {}
    def step(self, action): return np.ones(1, np.float32), 1.0, False, False, {}

algo = make_a2c(envs.host(Mine).spec, A2CConfig(n_envs=2, n_steps=3, hidden=(8,)))
with samplers.parallel(Mine, algo, 2, 3, random.key(0), n_workers=2) as feed:
    feed.publish(algo.init(random.key(1)))
    print(next(feed).reward.sum().item())
"""


FORKED = """
import os, sys
from worlds import Walk
from purerl import envs, make_a2c, random, samplers
from purerl.algos import A2CConfig

if __name__ == "__main__":
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=2, n_steps=3, hidden=(8,)))
    with samplers.parallel(Walk, algo, 2, 3, random.key(0), n_workers=2, restarts=0) as feed:
        feed.publish(algo.init(random.key(1)))
        next(feed)
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        print(next(feed).reward.shape)
"""


def test_a_fork_of_the_learner_leaves_the_workers_alone(tmp_path):
    (tmp_path / "forked.py").write_text(FORKED)
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(tmp_path / "forked.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120)
    assert (done.returncode, done.stdout) == (0, "torch.Size([3, 2])\n"), done.stderr


def test_feeds_opened_by_two_threads_at_once():
    with ThreadPoolExecutor(2) as pool:
        (one, _), (other, _) = pool.map(lambda _: run(samplers.serial, Walk, 2), range(2))
    assert_trees_equal(one, other)


def test_a_vector_environment_that_cannot_be_closed_hides_no_error():
    class Stuck(gym.vector.SyncVectorEnv):
        def close(self, **kwargs):
            raise ZeroDivisionError("stuck")

    def loop():
        algo = walk_algo()
        with samplers.native(Stuck([Walk] * 4), algo, 4, 5, random.key(0)) as feed:
            feed.publish(algo.init(random.key(1)))
            raise KeyError("in the loop")

    with pytest.warns(UserWarning, match="close raised ZeroDivisionError: stuck"), pytest.raises(KeyError, match="in the loop"):
        loop()


def test_an_environment_may_keep_the_action_that_it_was_sent():
    algo = make_a2c(envs.host(Retentive).spec, CONFIG)
    found = []
    for kind, make in ((samplers.serial, Retentive), (samplers.native, gym.vector.SyncVectorEnv([Retentive] * 4))):
        with kind(make, algo, 4, 1, random.key(0)) as feed:
            feed.publish(algo.init(random.key(1)))
            found.append([next(feed).last.obs for _ in range(4)])
    assert_trees_equal(*found)


def test_a_script_that_is_piped_into_python():
    done = subprocess.run([sys.executable, "-"], input=PIPED, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "6.0\n"), done.stderr


@pytest.mark.parametrize("kind", ["serial", "central"])
def test_an_environment_that_raises_in_reset_is_named(kind):
    with pytest.raises(samplers.EnvError, match=r"environment [0-3]: reset raised ZeroDivisionError"):
        run(KINDS[kind], partial(Faulty, "raise", at=0))


def test_the_trace_of_the_worker_is_told(tmp_path):
    with pytest.raises(samplers.EnvError, match=r"in worker [01]:\nTraceback(.|\n)*worlds.py"):
        run(KINDS["parallel"], flagged(tmp_path, "raise"))


@pytest.mark.parametrize("kind", ["parallel", "central"])
def test_an_environment_that_hangs_is_named(kind, tmp_path):
    start = time.monotonic()
    message = r"environment [0-3] has not answered for 1 s; restarts = 0 allows no more"
    with pytest.raises(samplers.WorkerError, match=message):
        run(KINDS[kind], flagged(tmp_path, "hang"), timeout=1, restarts=0)
    assert time.monotonic() - start < 60
    assert not children()


@pytest.mark.parametrize(
    ("fault", "message"), [("die", r"worker [01] \(environments .*\) was killed by SIGKILL"), ("exit", "ended with exit code 7")]
)
@pytest.mark.parametrize("kind", ["parallel", "central", "buffered"])
def test_a_dead_worker_is_replaced_up_to_the_limit(kind, fault, message, tmp_path):
    with pytest.warns(UserWarning, match=message + r"; it is replaced, a fragment is lost, 0 restarts are left"):
        batches, lost = run(KINDS[kind], flagged(tmp_path, fault, at=12), restarts=1)
    assert lost == 1
    assert len(batches) == 4
    assert batches[2].inputs.first[0].all()  # all environments begin anew
    with pytest.raises(samplers.WorkerError, match=message + r"; restarts = 0 allows no more"):
        run(KINDS[kind], flagged(tmp_path, fault, at=12), restarts=0)
    assert not children()


def test_a_worker_that_dies_while_it_is_being_replaced_is_replaced_again(tmp_path):
    (tmp_path / "step").write_text("")
    with pytest.warns(UserWarning, match="SIGKILL; it is replaced, a fragment is lost, 0 restarts are left"):
        batches, lost = run(KINDS["parallel"], partial(Brittle, str(tmp_path)), restarts=2)
    assert (tmp_path / "nothing").exists()
    assert (len(batches), lost) == (4, 1)


def test_a_hanging_worker_is_replaced(tmp_path):
    with pytest.warns(UserWarning, match=r"environment [0-3] has not answered for 1 s; it is replaced"):
        batches, lost = run(KINDS["parallel"], flagged(tmp_path, "hang"), timeout=1, restarts=2)
    assert (len(batches), lost) == (4, 1)


def test_a_worker_killed_between_two_batches():
    algo = walk_algo()
    with samplers.parallel(Walk, algo, 4, 5, random.key(0), n_workers=2) as feed:
        feed.publish(algo.init(random.key(1)))
        next(feed)
        os.kill(children()[0], signal.SIGKILL)
        time.sleep(0.2)
        with pytest.warns(UserWarning, match="SIGKILL"):
            next(feed)
        assert feed.lost == 1


def test_64_environments():
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=64, n_steps=5, hidden=(8,)))
    batches = []
    for kind in (samplers.serial, partial(samplers.parallel, n_workers=8)):
        with kind(Walk, algo, 64, 5, random.key(0)) as feed:
            feed.publish(algo.init(random.key(1)))
            batches.append([next(feed) for _ in range(3)])
    for a, b in zip(*batches, strict=True):
        assert_trees_equal(a, b)


def children():
    """The worker processes of this process: those of its fork server, and its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "stat").read_text()
            parent, state = int(text.rpartition(")")[2].split()[1]), text.rpartition(")")[2].split()[0]
            line = (path / "cmdline").read_bytes()
            grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]) if parent > 1 else 0
        except (FileNotFoundError, ProcessLookupError):
            continue
        if grandparent == os.getpid() and b"forkserver" in line and state != "Z":
            found.append(int(path.name))
    return sorted(found)


def test_feeds_leave_nothing():
    algo = walk_algo()
    state = algo.init(random.key(1))

    def use(kind, n_batches=1):
        with kind(Walk, algo, 4, 5, random.key(0)) as feed:
            feed.publish(state)
            for _ in range(n_batches):
                next(feed)

    def left():
        gc.collect()
        shared = [name for name in os.listdir("/dev/shm") if name.startswith(("pym-", "psm_", "sem."))]
        open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        heap = [name for name in open_files if name.startswith("/dev/shm/pym-")]  # Python's shared heap, which it uses again
        return len(open_files) - len(heap), len(children()), len(shared), len(heap)

    kinds = [KINDS["serial"], KINDS["parallel"], KINDS["central"], KINDS["buffered"]]
    for kind in kinds:
        use(kind)
    before = left()
    for i in range(48):  # what one kind leaves each time would be there twelve times
        use(kinds[i % 4], i // 4 % 2)
    deadline = time.monotonic() + 10  # other processes may have semaphores of their own for a moment
    while left()[2] > before[2] and time.monotonic() < deadline:
        time.sleep(0.1)
    after = left()
    assert after[0] <= before[0] + 2
    assert after[1] == 0
    assert after[2] <= before[2]  # other processes' may have gone meanwhile
    assert after[3] <= before[3] + 12


def test_a_feed_that_is_forgotten_ends_its_workers():
    algo = walk_algo()
    feed = samplers.parallel(Walk, algo, 4, 5, random.key(0), n_workers=2)
    feed.publish(algo.init(random.key(1)))
    next(feed)
    assert len(children()) == 2
    del feed
    gc.collect()
    assert not children()


def test_an_exception_in_the_loop_ends_the_workers():
    algo = walk_algo()
    feed = samplers.buffered(Walk, algo, 4, 5, random.key(0), n_workers=2)

    def loop():
        with feed:
            feed.publish(algo.init(random.key(1)))
            for _ in feed:
                raise KeyError("in the loop")

    with pytest.raises(KeyError):
        loop()
    assert not children()
    with pytest.raises(RuntimeError, match="feed: it is closed"):
        next(feed)


LEARNER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
sys.path.insert(0, {tests!r})
from test_faults import children, walk_algo
from functools import partial
from purerl import random, samplers
from worlds import Faulty, Walk

if __name__ == "__main__":
    algo = walk_algo()
    make = partial(Faulty, "hang", at=30) if {hang} else Walk
    with samplers.parallel(make, algo, 4, 5, random.key(0), n_workers=2) as feed:
        feed.publish(algo.init(random.key(1)))
        print(*children(), flush=True)
        for batch in feed:
            pass
"""


def start_learner(tmp_path, hang=False):
    script = tmp_path / "learner.py"
    script.write_text(LEARNER.format(tests=str(Path(__file__).parent), hang=hang))
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    learner = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    workers = [int(pid) for pid in learner.stdout.readline().split()]
    assert len(workers) == 2, learner.communicate()[1]
    return learner, workers


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("hang", [False, True])
def test_no_worker_outlives_a_killed_learner(tmp_path, hang):
    learner, workers = start_learner(tmp_path, hang)
    time.sleep(1.0)
    assert all(map(alive, workers))
    learner.kill()
    learner.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_ctrl_c_ends_everything(tmp_path):
    learner, workers = start_learner(tmp_path)
    time.sleep(0.5)
    for pid in (learner.pid, *workers):  # a terminal sends it to all
        os.kill(pid, signal.SIGINT)
    try:
        _, said = learner.communicate(timeout=30)
    finally:
        learner.kill()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1
    assert not any(map(alive, workers))


def test_a_script_without_the_guard_is_told_so(tmp_path):
    script = tmp_path / "unguarded.py"
    text = LEARNER.format(tests=str(Path(__file__).parent), hang=False)
    head, _, body = text.partition('if __name__ == "__main__":\n')
    script.write_text(head + "\n".join(line[4:] for line in body.splitlines()))
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120
    )
    assert done.returncode != 0
    assert 'put what it runs under: if __name__ == "__main__":' in done.stderr
    assert done.stderr.rstrip().endswith('and a script that starts workers needs: if __name__ == "__main__":')
