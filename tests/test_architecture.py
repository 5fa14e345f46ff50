"""Each floor imports only from the floors below it."""

import ast
from pathlib import Path

import purerl
from purerl import Algorithm

FLOORS = [
    {"base", "random", "tree", "config", "compiling", "donation", "transforms"},
    {
        "extras",
        "spaces",
        "autoreset",
        "distributions",
        "losses",
        "nets",
        "optim",
        "episodes",
        "normalize",
        "envs",
        "rollout",
        "policies",
        "replay",
    },
    {"algos"},
    {"samplers", "checkpoint", "logs", "storage"},
    {"training", "plot", "evaluate"},
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


SHELL = {"rollout", "episodes", "samplers", "checkpoint", "logs", "storage", "training", "evaluate", "plot", "cli"}
OPAQUE = {"algo_state", "acting", "info"}  # what these rooms call an algorithm's state and figures; and the attribute `algo`


def reaches(module, opaque=OPAQUE):
    """Where code looks by name into an algorithm's state, its config or its figures, which the record does not declare."""
    for node in ast.walk(module):
        match node:
            case ast.Attribute(value=ast.Attribute(attr="algo")):  # lanes.learner.algo.steps
                yield node
            case ast.Subscript(value=ast.Attribute(attr="algo") | ast.Name(id="algo"), slice=ast.Constant(value=str())):
                yield node
            case ast.Attribute(value=ast.Attribute(attr="config", value=ast.Name(id="algo" | "policy"))):  # algo.config.n_envs
                yield node
            case ast.Attribute(value=ast.Name(id="algo" | "policy"), attr=attr) if attr not in Algorithm._fields:
                yield node
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str())) if name in opaque:  # info["loss"]
                yield node
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in opaque and attr != "to_dict":
                yield node


def test_nobody_reaches_past_the_record():
    for line in (
        'going & torch.isfinite(info["loss"])',
        "lanes.learner.algo.steps.tolist()",
        'learner.algo.hyper["gamma"]',
        "example.algo.params",
        "algo.config.n_envs * 2",
        "len(acting.params)",
        "algo.optimizer",
    ):
        assert [*reaches(ast.parse(line))], line
    for room, path, module in rooms():
        if room in SHELL:
            opaque = OPAQUE - {"info"} if room == "samplers" else OPAQUE  # where an info is an environment's
            assert not [f"{path}:{node.lineno}: {ast.unparse(node)}" for node in reaches(module, opaque)]
