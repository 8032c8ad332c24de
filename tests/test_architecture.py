"""The arrows between the rooms of llava/ point down only; docs/architecture.md draws them."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT

# From the ground up. A room may import rooms of a lower line alone; rooms of one line know nothing of each other.
FLOORS = [
    {"ground"},  # the files beside the rooms: errors, constants, anyres, files, ...
    {"fusion", "data"},
    {"mllm", "two_tower"},
    {"checkpoint"},
    {"engine", "vllm_plugin"},
    {"train", "serve"},
    {"eval", "convert", "chat", "prepare_data", "demo"},
    {"bench", "analysis"},
    {"cli"},
]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / "llava").rglob("*.py"))
    }


def imports(module: str, late: bool = True) -> set[str]:
    """The package's modules that a module imports, what it starts when it is run as a program apart.

    late: also within functions, and what only a type checker reads.
    """
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    if late:
        nodes = [node for part in tree.body if not _starts_a_program(part) for node in ast.walk(part)]
    else:
        nodes = list(tree.body)
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    ours = {name for name in names if name in modules() and name not in ("llava", module)}
    return {name for name in ours if is_file(name) or not any(other.startswith(f"{name}.") for other in ours)}


def _starts_a_program(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def is_file(module: str) -> bool:
    return modules()[module].name != "__init__.py"


def room(module: str) -> str:
    """The folder of llava/ that a module stands in; "cli" and "ground" of the files beside them."""
    parts = module.split(".")
    if len(parts) > 2 or not is_file(module):
        return parts[1]
    return "cli" if parts[1] == "cli" else "ground"


def upward(floors: list[set[str]]) -> list[str]:
    """The imports between rooms that do not point to a lower floor."""
    floor = {name: number for number, names in enumerate(floors) for name in names}
    arrows = []
    for module in modules().keys() - {"llava"}:
        for other in sorted(imports(module)):
            here, there = room(module), room(other)
            if here != there and floor[there] >= floor[here]:
                arrows.append(f"{module} ({here}) imports {other} ({there})")
    return arrows


def test_every_room_has_a_floor():
    rooms = {room(module) for module in modules().keys() - {"llava"}}
    assert rooms == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(rooms) > 10


def test_arrows_between_rooms_point_down():
    assert upward(FLOORS) == []


def test_no_file_imports_itself_through_others():
    try:
        order = list(TopologicalSorter({module: imports(module, late=False) for module in modules()}).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))
    assert len(order) >= len(modules()) - 1 > 100


def test_the_page_names_every_file():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = page.partition("## The rooms")[2].partition("```text")[2].partition("```")[0]
    beside = page.partition("the files beside them:")[2].partition("```")[0]
    named, folders = {f"llava/{word}" for word in re.findall(r"[a-z]\w*", beside)}, []
    for line in tree.splitlines():
        if folder := re.match(r"( *)(\w+)/", line):
            folders = [*folders[: len(folder[1]) // 2], folder[2]]
        named |= {"/".join([*folders, word]) for word in re.findall(r"\w+(?!\w*/)", line.partition("/")[2] or line)}
    files = {path.relative_to(ROOT).with_suffix("").as_posix() for path in modules().values()}
    assert named == {file for file in files if not file.endswith("/__init__")} - {"llava/cli"}


def test_an_upward_arrow_is_seen(monkeypatch):
    below = [{"eval"}, *[floor - {"eval"} for floor in FLOORS]]
    assert "llava.eval.lmms_model (eval) imports llava.engine.engine (engine)" in upward(below)


def untyped(tree: ast.AST, prefix: str = "") -> list[str]:
    """Functions of a module and methods of its classes, those that begin with one underscore left out, that lack a
    type for an argument or for what they return."""
    names = []
    for node in getattr(tree, "body", []):
        is_private = node.name.startswith("_") and not node.name.endswith("__") if hasattr(node, "name") else False
        if isinstance(node, ast.ClassDef) and not is_private:
            names += untyped(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_private:
            given = node.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            of_all = [one.annotation for one in arguments if one is not None and one.arg not in ("self", "cls")]
            if None in of_all or (node.returns is None and node.name != "__init__"):
                names.append(f"{prefix}{node.name}")
    return names


def test_every_public_function_is_typed():
    sources = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in modules().items()}
    assert {module: names for module, tree in sources.items() if (names := untyped(tree))} == {}
    code = "class A:\n def f(self, a: int): ...\n def _g(self, a): ...\ndef g(a) -> int: ...\ndef h(a: int) -> int: ..."
    assert untyped(ast.parse(code)) == ["A.f", "g"]
