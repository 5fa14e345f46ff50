"""Each floor imports only from the floors below it."""

import ast
from pathlib import Path

import purerl

FLOORS = [
    {"base", "random", "tree", "config", "compiling", "donation", "transforms"},
    {"extras", "spaces", "distributions", "losses", "nets", "optim", "episodes", "normalize", "envs", "rollout", "policies"},
    {"algos"},
    {"samplers", "checkpoint", "logs"},
    {"train", "plot", "evaluate"},
    {"cli", "__main__"},
]
LEVEL = {room: i for i, floor in enumerate(FLOORS) for room in floor}
CORE = [room for floor in FLOORS[:3] for room in floor if room != "compiling"]
ROOT = Path(purerl.__file__).parent


def rooms():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path, ast.parse(path.read_text())


def imports(module):
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "purerl":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def test_every_room_has_a_floor_and_looks_down():
    for room, path, module in rooms():
        for other in imports(module):
            assert LEVEL[other] <= LEVEL[room], f"{path} imports {other}"


def test_the_core_knows_no_file_clock_or_process():
    outside = {"os", "time", "pathlib", "threading", "multiprocessing", "subprocess", "concurrent"}
    for room, path, module in rooms():
        if room in CORE and path.name != "generators.py":  # which keeps an environment's hands off the process
            names = {a.name.split(".")[0] for n in ast.walk(module) if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module.split(".")[0] for n in ast.walk(module) if isinstance(n, ast.ImportFrom) and n.module}
            assert not names & outside, path
