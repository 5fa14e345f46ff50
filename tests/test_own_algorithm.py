"""An algorithm of a user's own through everything that the shell does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import assert_trees_equal

from purerl import algos, checkpoint, envs, random, samplers, training
from purerl.cli import main
from purerl.logs import RATE, TIME, read_rows

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {"n_envs": 4, "n_steps": 8}
MINE = "own_loss:make_vtrace"


@pytest.fixture(autouse=True)
def _own_module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def train(out, *args, resume=False, report=lambda progress: None, **kwargs):
    run = training.load_run(out) if resume else training.plan(*args, **kwargs)
    if not resume:
        training.prepare(out, run)
    assert training.train(run, out, resume=resume, report=report) == []
    return run, training.load_state(out, run, *training.build(run))[0]


def last_rows(out):
    tables = {path.parent.relative_to(out): read_rows(path)[1] for path in sorted(out.rglob("progress.csv"))}
    return {str(name): {k: v for k, v in table[-1].items() if k not in (TIME, RATE)} for name, table in tables.items()}


def test_its_numbers_are_swept_and_its_discount_is_that_of_the_records(tmp_path, uncompiled):
    _, lanes = train(tmp_path / "sweep", MINE, "CartPole-v1", 2, 640, {**SMALL, "gamma": [0.5, 0.9], "ent_coef": [0.0, 1.0]})
    assert lanes.learner.algo.hyper["gamma"].tolist() == pytest.approx([0.5] * 4 + [0.9] * 4)
    assert lanes.learner.algo.hyper["ent_coef"].tolist() == [0.0, 0.0, 1.0, 1.0] * 2
    assert lanes.updates.tolist() == [20] * 8
    found = last_rows(tmp_path / "sweep")
    _, alone = train(tmp_path / "alone", MINE, "CartPole-v1", 2, 640, {**SMALL, "gamma": 0.9, "ent_coef": 1.0})
    for seed in range(2):
        lane = found[f"gamma=0.9,ent_coef=1/seed_00{seed}"]
        assert float(lane["DiscountedReturnAverage"]) == pytest.approx(
            float(last_rows(tmp_path / "alone")[f"seed_00{seed}"]["DiscountedReturnAverage"]), rel=1e-4
        )
        assert (
            float(lane["DiscountedReturnAverage"])
            > 2.0
            > float(found[f"gamma=0.5,ent_coef=1/seed_00{seed}"]["DiscountedReturnAverage"])
        )
        assert_trees_equal(alone.learner.algo.params[seed], lanes.learner.algo.params[6 + seed], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algo", [MINE, "worlds:make_bare"])
@pytest.mark.parametrize("background", [False, True])
def test_it_is_interrupted_resumed_and_evaluated(tmp_path, uncompiled, algo, background, monkeypatch):
    evaluating = training.Evaluating(eval_every=320, eval_episodes=2, eval_background=background)
    overrides = {**SMALL, "lr": [1e-3, 1e-2]} if algo == MINE else {}
    asked = (algo, "CartPole-v1", 2, 640, overrides)
    written, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda path, *args, **kwargs: written.append((path.name, args[0])) or save(path, *args, **kwargs)
    )
    run, whole = train(tmp_path / "whole", *asked, evaluating=evaluating)
    (evaluated, *_) = [state for name, state in written if name.startswith("evaluation")]
    assert_structure_of_acting(run, evaluated)

    def stop(progress):
        if progress.steps >= 320:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", *asked, evaluating=evaluating, report=stop)
    assert checkpoint.newest_meta(tmp_path / "cut" / "checkpoints")["update"] < 20
    _, resumed = train(tmp_path / "cut", resume=True)
    assert_trees_equal(resumed, whole)
    assert last_rows(tmp_path / "cut") == last_rows(tmp_path / "whole")
    tables = [[read_rows(path)[1] for path in sorted((tmp_path / name).rglob("evaluation.csv"))] for name in ("cut", "whole")]
    assert tables[0] == tables[1]
    assert [len(table) for table in tables[0]] == [2] * len(whole.going)
    assert training.finished(tmp_path / "cut", run)

    found = CliRunner().invoke(main, ["eval", str(tmp_path / "cut"), "--episodes", "2", "--video", str(tmp_path / "v.gif")])
    assert found.exit_code == 0, found.output
    assert "after 640 steps" in found.output
    assert (tmp_path / "v.gif").stat().st_size > 0


def assert_structure_of_acting(run, evaluated):
    algo, _ = training.build(run)
    acting = algo.acting(algo.init(random.key(0)))
    n = len(training.lanes(run))
    assert_trees_equal([torch.zeros(n, *x.shape) for x in leaves(acting)], [torch.zeros_like(x) for x in leaves(evaluated)])


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


@pytest.mark.parametrize("sampler", ["serial", "parallel", "central", "alternating", "buffered"])
@pytest.mark.parametrize("algo", [MINE, "worlds:make_bare"])
def test_it_learns_from_any_sampler(tmp_path, uncompiled, algo, sampler):
    collecting = training.Collecting(sampler=sampler, n_workers=0 if sampler == "serial" else 2)
    overrides = {**SMALL, "lr": [1e-3, 1e-2]} if algo == MINE else {}
    _, lanes = train(tmp_path, algo, "worlds:Walk-v0", 2, 320, overrides, collecting=collecting)
    assert lanes.updates.tolist() == [10] * len(lanes.going)
    found = last_rows(tmp_path)
    assert {row["Diagnostics/CumSteps"] for row in found.values()} == {"320"}
    figure = "loss" if algo == MINE else "best"
    assert all(np.isfinite(float(row[figure])) for row in found.values())
    if algo != MINE:  # which discounts nothing
        assert all(row["DiscountedReturnAverage"] == row["ReturnAverage"] for row in found.values())


def test_from_the_command_line(tmp_path):
    """As its user runs it: the module lies in the working folder."""
    (tmp_path / "mine.py").write_text((EXAMPLES / "own_loss.py").read_text())

    def purerl(*args):
        done = subprocess.run([sys.executable, "-m", "purerl", *args], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "--ent-coef" in purerl("train", "mine:make_vtrace", "--help")
    words = "train mine:make_vtrace --env CartPole-v1 --steps 640 --n-envs 4 --n-steps 8 --lr 1e-3,1e-2 --out run"
    purerl(*words.split(), "--eval-every", "320", "--eval-background", "--eval-episodes", "2")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["algo"] == "mine:make_vtrace"
    assert "is finished" in " ".join(purerl("resume", "run").split())
    assert "lr=0.01/seed_000  return" in purerl("eval", "run", "--episodes", "2")
    purerl("plot", "run", "--column", "Evaluation/ReturnAverage")
    assert (tmp_path / "run" / "curve.png").exists()


WRONG = """
import dataclasses
from worlds import make_bare

@dataclasses.dataclass(frozen=True)
class Config:
    n_steps: int = 8
    rate: float = 0.5
    word: str = "a"

number = 3

def make_nothing(spec):
    return None

def make_error(spec):
    raise ZeroDivisionError("oh")

def make_empty(spec):
    return make_bare(spec)._replace(n_envs=0)

def make_unknown(spec, config: "Confg | None" = None):
    return make_bare(spec)

def make_dict(spec, config: dict | None = None):
    return make_bare(spec)

def make_forgetful(spec, config: Config | None = None):
    return make_bare(spec)

@dataclasses.dataclass(frozen=True)
class Greedy:
    seeds: int = 3

def make_greedy(spec, config: Greedy | None = None):
    return make_bare(spec)

def make_configured(spec, config: Config | None = None):
    config = config or Config()
    return make_bare(spec)._replace(n_steps=config.n_steps, config=config)
"""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["no_such:make"],
            "algorithm: 'no_such:make' cannot be imported (No module named 'no_such'); the module 'no_such' is looked",
        ),
        (["wrong:make_nothin"], "algorithm: wrong has no 'make_nothin'; did you mean wrong:make_nothing?"),
        (["wrong:number"], "algorithm: 'wrong:number' is int, not a function make(spec, config) -> Algorithm"),
        (["wrong:make_nothing"], "algorithm: 'wrong:make_nothing' returned NoneType, not an Algorithm"),
        (["wrong:make_error"], "algorithm: 'wrong:make_error' cannot be made: ZeroDivisionError: oh"),
        (["wrong:make_empty"], "algorithm: 'wrong:make_empty' has n_envs = 0, not an integer at least 1"),
        (["wrong:make_unknown"], "algorithm: 'wrong:make_unknown' has an annotation that is not defined (name 'Confg'"),
        (["wrong:make_dict"], "algorithm: 'wrong:make_dict' annotates its config with dict | None, which is no dataclass"),
        (
            ["wrong:make_forgetful"],
            "algorithm: 'wrong:make_forgetful' takes a Config, but its config is None; put it into the record",
        ),
        (
            ["wrong:make_configured", "--rate", "0.1,0.2"],
            "rate = [0.1, 0.2] cannot be swept: it is not in the algorithm's hyper; wrong:make_configured has no numbers that can",
        ),
        (["wrong:make_configured", "--n-steps", "4,8"], "n_steps = [4, 8] cannot be swept: it is not in the algorithm's hyper;"),
        (["wrong:make_configured", "--n-steps", "4.5"], "Invalid value for '--n-steps': '4.5' is not a valid integer"),
        (["wrong:make_configured", "--rate", "x"], "Invalid value for '--rate': 'x' is not a number"),
        (["wrong:make_greedy"], "'wrong:make_greedy' has a config field 'seeds', but purerl train has that flag itself"),
        (["broken:make"], "algorithm: 'broken:make' cannot be imported: NameError: name 'oh' is not defined"),
        (["lacking:make"], "algorithm: 'lacking:make' cannot be imported (No module named 'no_such_package')"),
        (["worlds:make_bare", "--lr", "1"], "No such option"),
    ],
)
def test_mistakes(args, message, tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "broken.py").write_text("oh")
    (tmp_path / "lacking.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("wrong", "broken", "lacking"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = CliRunner().invoke(main, ["train", *args, "--env", "CartPole-v1", "--steps", "64", "--out", str(tmp_path / "run")])
    assert found.exit_code != 0
    assert isinstance(found.exception, SystemExit), found.exception
    assert message in " ".join(found.output.split())
    assert not (tmp_path / "run").exists()
    assert ("the module 'lacking' is looked for" in found.output) is False


def test_without_a_length_in_its_config_the_steps_must_be_said(tmp_path):
    found = CliRunner().invoke(main, ["train", MINE, "--env", "CartPole-v1", "--out", str(tmp_path / "run")])
    assert "the config of own_loss:make_vtrace has no total_steps to go by; say how many with --steps" in found.output


def test_a_config_of_plain_fields_is_flags_too(tmp_path, monkeypatch, uncompiled):
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    out = str(tmp_path / "run")
    words = f"train wrong:make_configured --env CartPole-v1 --steps 64 --n-steps 4 --rate 0.25 --word b --out {out}"
    found = CliRunner().invoke(main, words.split())
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"] == {"n_steps": 4, "rate": 0.25, "word": "b"}


def test_the_help_says_what_is_swept(tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    said = {name: CliRunner().invoke(main, ["train", name, "--help"]).output for name in (MINE, "wrong:make_configured")}
    assert "--lr NUMBER[,NUMBER...]" in said[MINE]
    for flag in ("--n-steps INT ", "--timeout NUMBER "):
        assert all(flag in help for help in said.values())
    assert "--rate NUMBER " in said["wrong:make_configured"]


def test_a_feed_says_what_acting_needs():
    env = envs.host("gym:CartPole-v1")
    algo = algos.make(MINE, env.spec)
    state = algo.init(random.key(0))
    with samplers.serial(env, algo, 2, 4, random.key(0)) as feed:
        feed.publish(state)
        assert next(feed).reward.shape == (4, 2)
        with pytest.raises(
            ValueError, match=r"^state: acting needs tensors of the shapes \[\(64, 4\), .*, but there are \[\(1, 64, 4"
        ):
            feed.publish(torch.stack([state]))
        with pytest.raises(ValueError, match=r"^hyper: there is no number 'rate' to sweep; there are lr, gamma, ent_coef$"):
            algo.init(random.key(0), {"rate": torch.tensor(1.0)})


def test_a_partial_of_a_maker_keeps_its_config(monkeypatch):
    from functools import partial

    import worlds

    monkeypatch.setattr(worlds, "make_wide", partial(algos.make_ppo, net=None), raising=False)
    assert algos.config_class("worlds:make_wide") is algos.PPOConfig
    assert algos.config_class("worlds:make_bare") is None
