"""A method of fusion is a file of configs/, at most one module and a YAML recipe; nothing else knows it by name."""

import pytest

from llava.fusion.methods import METHODS
from llava.train.recipe.dotted import read_yaml
from tests.paths import ROOT
from tests.test_architecture import imports, is_file, modules

SHARED = {
    f"llava.fusion.{name}"
    for name in ("base", "config", "layers", "methods", "question_spans", "tile_map", "weighted_sum")
}
# SAUM and AAUM share what makes a model's managers, and what they learned is read from both.
MORE = {"manager": {"llava.fusion.managers", "llava.fusion.aggregation"}}
KNOWN_ELSEWHERE = {"none"}  # the baseline


@pytest.fixture(scope="module")
def importers() -> dict[str, set[str]]:
    """{module of llava.fusion: modules that import it, lazily too}."""
    imported = {module: imports(module) for module in modules()}
    return {
        name: {module for module, names in imported.items() if name in names}
        for name in modules()
        if name.startswith("llava.fusion.") and is_file(name)
    }


def files_of(method: str) -> tuple[str, str]:
    """Its file of configs/ and its module, dotted."""
    kind = METHODS[method]
    return kind.__module__, kind.implementation().__module__


def test_there_is_no_file_but_those_of_methods_and_what_they_share(importers):
    of_methods = {file for method in METHODS for file in files_of(method)}
    assert not SHARED & of_methods
    assert importers.keys() == of_methods | SHARED | set().union(*MORE.values())
    assert {shared for shared in SHARED if len(importers[shared]) < 2} == set()


@pytest.mark.parametrize("method", [name for name in METHODS if name not in MORE])
def test_a_method_is_two_files_and_a_recipe(method, importers):
    config, module = files_of(method)
    used = {name for name, users in importers.items() if users & {config, module}}
    assert used <= {config, module} | SHARED
    assert read_yaml(str(ROOT / f"scripts/train/recipes/fusion/{method}.yaml")) == {"fusion": {"method": method}}
    if method not in KNOWN_ELSEWHERE:
        assert importers[config] == {module, "llava.fusion.methods"}
        assert importers[module] == {config}
