"""Modeling files that run without this package: its own sources, each in one flat file, found by their imports.

transformers loads custom code from a model's folder, through `auto_map` in its JSON files, and follows relative imports
between files of that one folder. So `llava/mllm/packing.py` becomes `mllm_packing.py`, and in it `from llava.anyres
import` becomes `from .anyres import`; nothing else changes. One entry file names the public classes: transformers
copies an entry and all that it imports to a place of their own, and with one entry there is one copy of each class.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import llava
from llava.constants import MODEL_TYPE
from llava.two_tower.parts import MODEL_TYPE as TWO_TOWER_TYPE


@dataclass(frozen=True)
class Code:
    """The modeling files of a family of models.

    Attributes:
        entry: the entry file's name.
        auto_classes: {auto class: (module, class) that it gets}.
        imported, entered: what the entry file imports and does besides.
    """

    entry: str
    auto_classes: dict[str, tuple[str, str]]
    imported: str = ""
    entered: str = ""

    def auto_map(self, *auto_classes: str) -> dict[str, str]:
        """The entry `auto_map` of a JSON file, for these auto classes."""
        return {name: f"{self.entry}.{self.auto_classes[name][1]}" for name in auto_classes}


_GENERATING = ("llava.mllm.modeling", "LlavaOVManagerForConditionalGeneration")
MLLM = Code(
    MODEL_TYPE,
    {
        "AutoConfig": ("llava.mllm.configuration", "LlavaOVManagerConfig"),
        "AutoModel": ("llava.mllm.modeling", "LlavaOVManagerModel"),
        "AutoModelForImageTextToText": _GENERATING,
        "AutoModelForMultimodalLM": _GENERATING,
        "AutoImageProcessor": ("llava.data.image_processor", "LlavaOVManagerImageProcessor"),
        "AutoProcessor": ("llava.data.processor", "LlavaOVManagerProcessor"),
    },
    imported="from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES\n",
    entered=f"""
# `transformers serve` (5.23) serves what it finds in this table alone; the Auto classes' register() leaves it as it is.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["{MODEL_TYPE}"] = "{_GENERATING[1]}"
""",
)
_FOR_TASK = ("llava.two_tower.modeling", "TwoTowerForTask")
TWO_TOWER = Code(
    TWO_TOWER_TYPE,
    {
        "AutoConfig": ("llava.two_tower.configuration", "TwoTowerConfig"),
        "AutoModel": ("llava.two_tower.modeling", "TwoTowerModel"),
        "AutoModelForPreTraining": _FOR_TASK,
        "AutoModelForVisualQuestionAnswering": _FOR_TASK,
        "AutoModelForSequenceClassification": _FOR_TASK,
    },
)
# What loads a two-tower model with its heads, by its task; the others classify a pair.
_TASK_CLASSES = {"pretrain": "AutoModelForPreTraining", "vqav2": "AutoModelForVisualQuestionAnswering"}
_SOURCES = Path(llava.__file__).parent


def task_class(task: str) -> str:
    """The auto class that loads a two-tower model of a task with its heads."""
    return _TASK_CLASSES.get(task, "AutoModelForSequenceClassification")


def write_code(folder: Path, code: Code = MLLM) -> list[str]:
    """Writes the entry and every module of this package that it needs; returns the files' names."""
    files = {f"{code.entry}.py": _entry(code)}
    pending = {module for module, _ in code.auto_classes.values()}
    while pending:
        module = pending.pop()
        text, needed = _flattened(module)
        files[f"{_flat_name(module)}.py"] = text
        pending |= {name for name in needed if f"{_flat_name(name)}.py" not in files}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(files)


def _entry(code: Code) -> str:
    classes = sorted(set(code.auto_classes.values()))
    imports = [f"from .{_flat_name(module)} import {name}" for module, name in classes]
    return _header("") + "\n".join(
        [code.imported, *imports, "", f"__all__ = {[name for _, name in classes]}", code.entered]
    )


def _header(source: str) -> str:
    origin = f"from {source} " if source else ""
    return f"# Made by `llava convert export` {origin}of llava-ov-manager {llava.__version__} (Apache-2.0).\n"


def _flat_name(module: str) -> str:
    return module.removeprefix("llava.").replace(".", "_")


def _flattened(module: str) -> tuple[str, set[str]]:
    """The text of a module with its imports made relative, and the modules of this package that it imports.

    Raises:
        ImportError: One of this package cannot be made so: any but `from llava.x import name`.
    """
    source = _SOURCES.joinpath(*module.split(".")[1:]).with_suffix(".py")
    text = source.read_text(encoding="utf-8")
    lines, needed = text.splitlines(keepends=True), set()
    # from the last to the first, so that line numbers stay right
    for node, in_function in sorted(_imports(ast.parse(text)), key=lambda import_: -import_[0].lineno):
        if any(name.split(".")[0] == "llava" for name in _imported_modules(node)):
            if not isinstance(node, ast.ImportFrom) or not _is_module(node.module):
                raise ImportError(f"{source}:{node.lineno}: write `from llava.module import name` to be exported")
            needed.add(node.module)
            first = lines[node.lineno - 1]
            lines[node.lineno - 1] = first.replace(f"from {node.module} ", f"from .{_flat_name(node.module)} ", 1)
        elif in_function:
            lines[node.lineno - 1 : node.end_lineno] = _optional(lines[node.lineno - 1 : node.end_lineno])
    return _header(source.relative_to(_SOURCES.parent).as_posix()) + "".join(lines), needed


def _imports(tree: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement and whether it runs when a function is called only, and not in a try statement."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, in_function
        elif isinstance(node, ast.Try):
            yield from ((inner, False) for inner, _ in _imports(node))
        else:
            yield from _imports(node, in_function or isinstance(node, ast.FunctionDef))


def _imported_modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


def _is_module(name: str) -> bool:
    return _SOURCES.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file()


def _optional(lines: list[str]) -> list[str]:
    """An import as transformers takes it for optional: it demands every package that is imported outside of `try`."""
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return [f"{indent}try:\n", *(f"    {line}" for line in lines), f"{indent}finally:\n{indent}    pass\n"]
