"""What importing the package does to the process."""

import subprocess
import sys
from pathlib import Path

import pytest

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FILL = """
import {module}, torch
x = torch.ones(1 << 24)
print(sum(int(line.split()[1]) for line in open("/proc/self/smaps") if line.startswith("AnonHugePages")))
"""


def huge_kilobytes(module: str, **environment: str) -> int:
    done = subprocess.run([sys.executable, "-c", FILL.format(module=module)], env=environment, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not HUGE.exists() or "[madvise]" not in HUGE.read_text(), reason="the kernel is not told by programs")
def test_large_memory_lies_in_large_pages():
    assert huge_kilobytes("purerl") >= 1 << 15  # half of it, at least
    assert huge_kilobytes("purerl", THP_MEM_ALLOC_ENABLE="0") < 1 << 15
