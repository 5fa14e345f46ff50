import pytest
import torch
from torch._inductor import metrics

from purerl import compile, random
from purerl.compiling import inductor


@pytest.fixture
def n_kernels(monkeypatch, tmp_path):
    """How many kernels a function's program has, before those are joined."""
    monkeypatch.setenv("PURERL_CACHE", str(tmp_path))

    def count(f, *args):
        metrics.reset()
        torch.testing.assert_close(compile(f)(*args), f(*args), rtol=0, atol=0)
        return metrics.ir_nodes_pre_fusion

    return count


@pytest.mark.parametrize(("width", "wanted"), [(inductor.WIDE, 2), (inductor.WIDE - 1, 1)])
def test_which_row_to_read_is_found_once_for_a_wide_one(n_kernels, width, wanted):
    memory, table, places = random.uniform(random.key(0), (6, width)), torch.tensor([3, 5, 0, 1, -1]), torch.arange(7)
    assert n_kernels(lambda memory, table, places: memory[table[places % 5]] + 1.0, memory, table, places) == wanted


def test_a_row_that_takes_no_reading_is_not_written_down(n_kernels):
    memory = random.uniform(random.key(0), (5, 8))
    assert n_kernels(lambda memory: memory[(torch.arange(7) * 3) % 5] + 1.0, memory) == 1
