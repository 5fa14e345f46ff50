"""A run whose lanes hold memory that is written in place: it stays where it is, is saved and resumed, and belongs to its lane."""

import contextlib
import itertools
import shutil
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import assert_trees_equal, peak_growth
from tensordict import TensorDict

from purerl import Donated, checkpoint, donation, storage, training, tree
from purerl.cli import main


def plan(out, env, **kwargs):
    run = training.plan("replaying:make", env, 2, 640, {"lr": [1e-3, 1e-2]}, **kwargs)
    training.prepare(out, run)
    return run


def final(out, run):
    return training.load_state(out, run, *training.build(run))[0]


def memory(lanes):
    return [x for x, is_donated in zip(*_marked(lanes), strict=True) if is_donated]


def _marked(lanes):
    leaves, structure = tree.flatten(lanes)
    return leaves, tree.donated(structure)


@pytest.mark.parametrize("env", ["CartPole-v1", "gym:CartPole-v1"])
def test_memory_stays_where_it_is(env, tmp_path):
    run = plan(tmp_path, env)
    algo, made = training.build(run)
    state = training.initial_state(run, algo, made)
    places = [x.data_ptr() for x in memory(state)]
    runner = training.make_runner(run, algo, made, state, 0)
    try:
        for n in (1, 3, 2):
            runner.step(n)
            starts = [memory(tile) for tile in runner.tiles]
            assert [x.data_ptr() for x in starts[0]] == places  # and the other tiles lie behind
            assert all(a.data_ptr() + a.nbytes == b.data_ptr() for parts in zip(*starts) for a, b in itertools.pairwise(parts))
        assert runner.update == 6
        filled = runner.gather(lambda tile: (tile.learner.algo.memory.memory["obs"] != 0).any(-1).sum(-1))
        assert (filled >= 90).all()
    finally:
        runner.close()


@pytest.mark.parametrize("env", ["CartPole-v1", "worlds:Walk-v0"])
def test_an_interrupted_run_is_resumed_with_the_same_bits(env, tmp_path):
    run = plan(tmp_path / "whole", env)
    training.train(run, tmp_path / "whole")
    whole = final(tmp_path / "whole", run)
    assert whole.learner.algo.memory.memory["reward"].abs().sum() > 0
    training.prepare(tmp_path / "cut", run)
    interrupt(run, tmp_path / "cut", 160)
    training.train(run, tmp_path / "cut", resume=True)
    assert_trees_equal(final(tmp_path / "cut", run), whole)
    again = training.plan("replaying:make", env, 1, 640, {"lr": 1e-2})
    training.prepare(tmp_path / "lone", again)
    training.train(again, tmp_path / "lone")  # the lane of seed 0 and lr = 0.01
    lone, lane = final(tmp_path / "lone", again).learner.algo, tree.index(whole.learner.algo, slice(2, 3))
    assert_trees_equal(lone, lane, rtol=1e-5, atol=1e-6)


def interrupt(run, out, steps):
    def stop(progress):
        if progress.steps >= steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        training.train(run, out, report=stop)
    assert raised.value.__notes__ == ["the run up to there is saved"]


DQN = {"n_envs": 2, "n_steps": 4, "capacity": 64, "batch_size": 8, "replay_ratio": 2.0, "learning_starts": 16, "hidden": (8,)}


def dqn(out, seeds=1, **kwargs):
    run = training.plan("dqn", "CartPole-v1", seeds, 160, DQN, **kwargs)
    training.prepare(out, run)
    return run


def test_a_replay_is_resumed_from_chunks_or_begins_empty(tmp_path, monkeypatch):
    """Without it nothing is learnt before as many new steps were seen as at the start: of 20 batches with two updates each, the
    first of the run has none, and the first after its resumption."""
    monkeypatch.setattr(checkpoint, "CHUNK", 256)
    monkeypatch.setattr(training.loop, "REPORT_EVERY", 1e-9)
    run = dqn(tmp_path / "whole")
    training.train(run, tmp_path / "whole")
    dqn(tmp_path / "cut")
    interrupt(run, tmp_path / "cut", 80)
    training.train(run, tmp_path / "cut", resume=True)
    whole = final(tmp_path / "whole", run)
    assert list((tmp_path / "cut" / "checkpoints" / "chunks").iterdir())
    assert_trees_equal(final(tmp_path / "cut", run), whole)
    assert whole.learner.algo.updates.item() == 2 * 19

    run = dqn(tmp_path / "bare", checkpoint_replay=False)
    assert not training.load_run(tmp_path / "bare").checkpoint_replay
    interrupt(run, tmp_path / "bare", 80)
    assert not any("content" in checkpoint._read_head(x).tensors for x in tmp_path.glob("bare/checkpoints/step_*"))
    saved = final(tmp_path / "bare", run).learner.algo
    again = training.loop._start(run, tmp_path / "bare", resume=True)[0].learner.algo
    assert_trees_equal(again.params, saved.params)
    assert again.steps.item() == saved.steps.item() >= 80
    assert (again.replay.index.end - again.replay.index.start).item() == again.replay.steps.n_added.item() == 0
    assert tree.structure(again) == tree.structure(whole.learner.algo)
    training.train(run, tmp_path / "bare", resume=True)
    ended = final(tmp_path / "bare", run).learner.algo
    assert ended.steps.item() == 160
    assert ended.updates.item() == 2 * 18
    found = CliRunner().invoke(main, ["eval", str(tmp_path / "bare"), "--episodes", "1"])
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize("ratio", [0.5, 4.0])
def test_a_replay_learns_from_every_sampler(tmp_path, uncompiled, ratio):
    """With fewer updates than steps and with more. The samplers that wait for the learner end with the same bits; from the one that
    acts while it learns as many batches are learnt from."""
    config = {**DQN, "replay_ratio": ratio, "batch_size": 4, "prioritized": True, "n_step": 2}
    ended = {}
    for sampler in ("serial", "parallel", "central", "alternating", "buffered"):
        collecting = training.Collecting(sampler=sampler, n_workers=0 if sampler == "serial" else 2)
        run = training.plan("dqn", "worlds:Walk-v0", 2, 160, config, env_options={"longest": 5}, collecting=collecting)
        training.prepare(tmp_path / sampler, run)
        training.train(run, tmp_path / sampler)
        ended[sampler] = final(tmp_path / sampler, run).learner.algo
    for state in ended.values():
        assert state.updates.tolist() == [19 * int(2 * ratio)] * 2  # for 20 batches of 8 steps, the first of which only fills
        assert state.steps.tolist() == state.replay.steps.n_added.mul(2).tolist() == [160] * 2
    for sampler in ("parallel", "central", "alternating"):
        assert_trees_equal(ended[sampler], ended["serial"])
    assert not torch.equal(tree.leaves(ended["buffered"].params)[0], tree.leaves(ended["serial"].params)[0])


@pytest.mark.parametrize("kept", [True, False])
def test_a_replay_in_files_gives_the_same_bits(tmp_path, monkeypatch, kept):
    """Also of a run that is interrupted, with its replay in its checkpoints or without."""
    monkeypatch.setattr(storage, "LARGE", 256)
    monkeypatch.setattr(training.loop, "REPORT_EVERY", 1e-9)
    places = []

    def train(out, cut, **kwargs):
        run = dqn(out, seeds=2, checkpoint_replay=kept, **kwargs)
        if cut:
            interrupt(run, out, 80)
        training.train(run, out, resume=cut, report=lambda progress: places.append(maps()))
        if kwargs:
            assert [f"{tmp_path}/files/" in line for line in places] == [True] * len(places)
        return final(out, run)

    def maps():
        return Path("/proc/self/maps").read_text()

    for cut in (False, True):
        here = train(tmp_path / f"here {cut}", cut)
        places.clear()
        there = train(tmp_path / f"there {cut}", cut, replay_folder=tmp_path / "files")
        assert_trees_equal(there, here)
        assert there.learner.algo.updates.tolist() == [2 * (19 if kept or not cut else 18)] * 2
        assert list((tmp_path / "files").iterdir()) == []
    assert training.load_run(tmp_path / "there True").replay_folder == str(tmp_path / "files")


def test_a_folder_for_a_replay_that_cannot_be(tmp_path):
    def train(*args):
        return CliRunner().invoke(
            main, ["train", *args, "--replay-folder", str(tmp_path / "file" / "deep"), "--out", str(tmp_path / "x")]
        )

    (tmp_path / "file").write_text("")
    found = train("ppo", "--env", "CartPole-v1")
    assert f"replay_folder = {tmp_path}/file/deep: ppo has no donated memory, such as a replay, to lie there" in found.output
    found = train("dqn", "--env", "CartPole-v1")
    assert f"replay_folder = {tmp_path}/file/deep cannot be a folder: {tmp_path}/file is a file" in found.output
    with pytest.raises(ValueError, match="is for memory of the CPU, but device = 'cuda'"):
        training.run.check_folder("dqn", training.room.Held(1, "x"), "cuda", tmp_path)
    assert not (tmp_path / "x").exists()


def first(out, run):
    """The state that a run begins with."""
    return checkpoint.load(out / "checkpoints" / "step_000000000000.safetensors", template(run))[0]


def template(run):
    return training.programs.template(run, *training.build(run))


@pytest.mark.parametrize(("seeds", "kwargs"), [(1, {}), (2, {"replay_folder": "files"}), (2, {})])
def test_a_run_begins_with_the_replay_of_another(tmp_path, monkeypatch, uncompiled, seeds, kwargs):
    """Of each lane, or of one for all; it learns from it at once."""
    monkeypatch.setattr(checkpoint, "KEEP", 100)
    kwargs = {name: tmp_path / x for name, x in kwargs.items()}
    source = dqn(tmp_path / "source", seeds=seeds if kwargs else 1)
    training.train(source, tmp_path / "source")
    theirs = final(tmp_path / "source", source).learner.algo.replay
    run = training.plan("c51", "gym:CartPole-v1", seeds, 80, DQN, replay_from=tmp_path / "source", **kwargs)
    training.prepare(tmp_path / "run", run)
    training.train(run, tmp_path / "run")
    begun, ended = first(tmp_path / "run", run).learner.algo, final(tmp_path / "run", run).learner.algo
    for lane in range(seeds):
        assert_trees_equal(tree.index(begun.replay, lane), tree.index(theirs, lane if kwargs else 0))
    assert begun.replay.steps.n_added.tolist() == [80] * seeds
    assert ended.replay.steps.n_added.tolist() == [120] * seeds
    assert begun.steps.tolist() == [0] * seeds
    assert ended.updates.tolist() == [20] * seeds  # two a batch, from the first one on
    assert training.load_run(tmp_path / "run").replay_from == str(tmp_path / "source")


def test_a_run_that_begins_with_a_replay_is_resumed_without_the_other(tmp_path, uncompiled):
    source = dqn(tmp_path / "source")
    training.train(source, tmp_path / "source")
    whole = dqn(tmp_path / "whole", replay_from=tmp_path / "source")
    training.train(whole, tmp_path / "whole")
    dqn(tmp_path / "cut", replay_from=tmp_path / "source")
    interrupt(whole, tmp_path / "cut", 80)
    shutil.rmtree(tmp_path / "source")
    training.train(whole, tmp_path / "cut", resume=True)
    assert_trees_equal(final(tmp_path / "cut", whole), final(tmp_path / "whole", whole))


def test_the_replay_of_a_lane_that_has_stopped_is_refused(tmp_path, uncompiled):
    source = training.plan("dqn", "CartPole-v1", 1, 160, {**DQN, "lr": [1e-3, 1e30]})
    training.prepare(tmp_path / "source", source)
    assert training.train(source, tmp_path / "source")
    run = training.plan("dqn", "CartPole-v1", 2, 160, DQN, replay_from=tmp_path / "source")
    training.prepare(tmp_path / "run", run)
    with pytest.raises(ValueError, match=r"a number that was not finite has stopped lr=1e\+30/seed_000; its replay holds it"):
        training.train(run, tmp_path / "run")


def test_a_replay_that_a_run_cannot_begin_with_is_refused_by_name(tmp_path, uncompiled):
    def refused(message, algo="dqn", env="CartPole-v1", seeds=1, source="one", **config):
        with pytest.raises(ValueError, match=rf"^replay_from = {tmp_path / source}{message}$"):
            training.plan(algo, env, seeds, 640, {**(DQN if algo == "dqn" else {}), **config}, replay_from=tmp_path / source)

    def source(name, run):
        training.prepare(tmp_path / name, run)
        training.train(run, tmp_path / name)

    source("one", training.plan("dqn", "CartPole-v1", 1, 160, DQN))
    source("two", training.plan("dqn", "CartPole-v1", 2, 160, DQN))
    source("bare", training.plan("dqn", "CartPole-v1", 1, 160, DQN, checkpoint_replay=False))
    source("a2c", training.plan("a2c", "CartPole-v1", 1, 160, {"hidden": (8,)}))
    dqn(tmp_path / "begun")
    kind = " has a replay of another kind"
    refused(kind + r" \(capacity = 64, here 128\): steps.content.memory.obs is F32 \[66, 4\], not F32 \[130, 4\]; .*", capacity=128)
    refused(kind + r" \(n_envs = 2, here 1\): .*steps.valid is BOOL \[2\], not BOOL \[1\].*", n_envs=1)
    refused(
        kind + r" \(prioritized = False, here True\): it has no index.tree.memory.sums; .*; nothing is called index.rows.*",
        prioritized=True,
    )
    refused(" is a run in CartPole-v1, not in Acrobot-v1", env="Acrobot-v1")
    refused(" has 2 lanes, but this run has 3: there may be as many, or one for all", seeds=3, source="two")
    refused(" has no checkpoint that holds a replay", source="bare")
    refused(" has no checkpoint that holds a replay", source="begun")
    refused(r": its algorithm a2c has no replay that another run could begin with, its record has no `replay`", source="a2c")
    refused(": a2c has no replay that another run could begin with, its record has no `replay`", algo="a2c")
    with pytest.raises(ValueError, match=r"^/.*/none: holds no run"):
        training.plan("dqn", "CartPole-v1", 1, 640, DQN, replay_from=tmp_path / "none")
    flags = ["--env", "CartPole-v1", "--steps", "640", "--out", str(tmp_path / "run"), "--replay-from", str(tmp_path / "one")]
    flags += ["--learning-starts", "64"]
    found = CliRunner().invoke(main, ["train", "dqn", *flags])
    assert found.exit_code == 1
    assert "has a replay of another kind (" in found.output
    assert "capacity = 64, here 10000" in found.output
    assert "): steps.content.memory.obs is F32 [66, 4], not F32 [10001, 4]" in found.output
    assert not (tmp_path / "run").exists()


def test_an_algorithm_that_cannot_forget_is_refused_before_any_work(tmp_path):
    flags = ["--env", "CartPole-v1", "--steps", "640", "--out", str(tmp_path / "run"), "--checkpoint-replay", "no"]
    found = CliRunner().invoke(main, ["train", "replaying:make", *flags])
    assert found.exit_code == 1
    assert "checkpoint_replay = no: replaying:make cannot go on with an empty memory, its record has no `forget`" in found.output
    assert not (tmp_path / "run").exists()
    training.plan("a2c", "CartPole-v1", 1, 640, {}, checkpoint_replay=False)  # which has none


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak")
def test_an_evaluation_reads_no_memory(tmp_path):
    def evaluate(capacity, *flags):  # of 24 bytes each
        out = tmp_path / str(capacity)
        run = training.plan("replaying:make", "CartPole-v1", 2, 640, {"capacity": capacity})
        training.prepare(out, run)
        state = training.initial_state(run, *training.build(run))
        checkpoint.save_step(out / "checkpoints", 0, [state], {"update": 0})
        grown, found = peak_growth(lambda: CliRunner().invoke(main, ["eval", str(out), "--episodes", "1", *flags]))
        assert found.exit_code == 0, found.output
        return grown

    evaluate(96, "--video", str(tmp_path / "film.gif"))
    assert evaluate(1_000_000) < 16e6


def test_the_guard_keeps_the_good_state_without_a_copy_of_the_memory():
    example = training.HostState(
        algo=torch.zeros(2), episodes=Donated(memory={"x": torch.zeros(3)}), key=torch.zeros(2, dtype=torch.int32)
    )
    seen = []

    def step(state):
        seen.append(tree.leaves(state.episodes)[0].data_ptr())
        return tree.replace(state, algo=state.algo * torch.nan), {}

    guarded = training.guard(step, example)
    packed, _ = tree.pack(example)
    after, going, updates, _ = guarded(packed, torch.tensor(True), torch.tensor(3))
    assert not going
    assert updates == 3
    assert seen == [tree.leaves(packed[Donated])[0].data_ptr()] == [tree.leaves(after[Donated])[0].data_ptr()]
    assert after[torch.float32].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("torn", [False, True])
def test_an_update_that_fails_among_several(tmp_path, monkeypatch, torn):
    """What the updates before it have left is saved, unless the memory is written in part."""
    torch.set_num_threads(1)
    calls = []

    def iterate(step, threads=1):
        def run(state, n):
            calls.append(n)
            if len(calls) == 2:
                donation.hand_on(memory(state) if torn else [])  # as a program that fails does
                raise MemoryError
            for _ in range(n):
                state, info = step(state)
            return state, info

        return run

    monkeypatch.setattr(training.programs, "iterate", iterate)
    monkeypatch.setattr(training.loop.Pace, "fits", lambda self, update, seconds: 3)
    monkeypatch.setattr(training.loop, "every", lambda n, act: training.reports.every(100, act))
    run = plan(tmp_path / "whole", "CartPole-v1")
    training.prepare(tmp_path / "cut", run)
    with pytest.raises(MemoryError) as raised:
        training.train(run, tmp_path / "cut")
    if torn:
        why = "an update failed while it wrote into the lanes' memory"
        assert raised.value.__notes__ == [f"the run up to there could not be saved ({why}); the checkpoint before is whole"]
    else:
        assert raised.value.__notes__ == ["the run up to there is saved"]
    assert final(tmp_path / "cut", run).updates.tolist() == [0 if torn else 3] * 4
    training.train(run, tmp_path / "cut", resume=True)
    training.train(run, tmp_path / "whole")
    assert_trees_equal(final(tmp_path / "cut", run), final(tmp_path / "whole", run))


def test_lanes_without_memory_go_back_to_where_all_of_them_were():
    def advance(tile, n):
        yield training.programs.Step(1, tree.map(lambda x: x + 1, tile), TensorDict())
        if tile.updates[0] == 7:
            raise MemoryError
        yield training.programs.Step(n - 1, tree.map(lambda x: x + n, tile), TensorDict())

    def tile(x):
        return training.Lanes(learner=torch.zeros(1), going=torch.ones(1), updates=torch.full((1,), x))

    runner = training.Runner(training.programs.Program(advance), [tile(3), tile(7)], 5)
    with pytest.raises(MemoryError):
        runner.step(3)
    assert runner.update == 5
    assert [tile.updates.item() for tile in runner.tiles] == [3, 7]
    runner.close()


def test_memory_that_a_thread_still_writes_is_not_saved(monkeypatch):
    """Interrupted in an update that goes on for longer than the patience: a checkpoint would be torn."""
    monkeypatch.setattr(training.programs, "PATIENCE", 0.05)
    go_on = threading.Event()

    def advance(tile, n):
        go_on.wait()
        yield training.programs.Step(n, tile, TensorDict())

    def interrupt(self):
        raise KeyboardInterrupt

    for algo, may_be_saved in ((torch.zeros(1, 2), True), (Donated(memory=TensorDict(x=torch.zeros(1, 3))), False)):
        go_on.clear()
        learner = training.HostState(algo=algo, episodes=TensorDict(), key=torch.zeros(1, 2, dtype=torch.int32))
        tile = training.Lanes(learner=learner, going=torch.ones(1, dtype=torch.bool), updates=torch.zeros(1, dtype=torch.int64))
        runner = training.Runner(training.programs.Program(advance), [tile], 3)
        with monkeypatch.context() as patch:
            patch.setattr(Future, "result", interrupt)
            with pytest.raises(KeyboardInterrupt):
                runner.step(1)
        with contextlib.nullcontext() if may_be_saved else pytest.raises(RuntimeError, match="still at work"):
            assert runner.update == 3
        go_on.set()
        runner._futures[0].result()
        assert runner.update == 4
        runner.close()
