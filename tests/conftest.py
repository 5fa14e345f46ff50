import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

CONTINUOUS = ("crossq", "ddpg", "droq", "redq", "sac", "td3", "tqc", "xqc")  # the algorithms for boxes of actions


def pytest_configure(config):
    """Compiled programs are shared by the tests of one run, and by no others."""
    if not hasattr(config, "workerinput"):
        folder = os.environ["PURERL_CACHE"] = tempfile.mkdtemp(prefix="purerl-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests share two cores, and compiled code is made for one thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_generator_untouched(request):
    """No function of the core touches torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()) or request.node.get_closest_marker("torch_modules")


@pytest.fixture
def seeded():
    """Torch's global generator, from which tests draw numbers, begins at 0, and is put back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def uncompiled(monkeypatch):
    """Runs are not compiled: that is not what their test is about."""
    from purerl import training

    def iterate(step, threads=1):
        def run(state, n):
            for _ in range(n):
                state, info = step(state)
            return state, info

        return run

    monkeypatch.setattr(training.programs, "iterate", iterate)
    monkeypatch.setattr(training.programs, "compile", lambda f, threads=1: f)


def assert_trees_equal(a, b, **tolerance):
    from torch.utils import _pytree as pytree

    leaves_a, leaves_b = pytree.tree_leaves(a), pytree.tree_leaves(b)
    assert len(leaves_a) == len(leaves_b)
    for x, y in zip(leaves_a, leaves_b, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))


def peak_growth(f):
    """Bytes by which this process was larger than before, at most, while `f` ran (Linux)."""
    status = lambda name: int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    kept = f()
    return status("VmHWM") - before, kept
