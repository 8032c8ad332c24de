"""What is overridden of transformers' Trainer is listed, whole, and is still there: a checklist for an upgrade."""

import ast
import inspect
from dataclasses import FrozenInstanceError

import pytest
from transformers import Trainer

from llava.data.collator import take_origins
from llava.train import stage
from llava.train.folders.resume_point import ResumePoint
from llava.train.loop.trainer import OVERRIDDEN, LlavaTrainer


def test_the_list_is_what_is_overridden():
    assert LlavaTrainer.__bases__ == (Trainer,)
    inherited = {name for name in vars(LlavaTrainer) if hasattr(Trainer, name) and not name.startswith("__")}
    assert set(OVERRIDDEN) == inherited
    assert all(callable(getattr(Trainer, name)) for name in OVERRIDDEN)
    assert all(OVERRIDDEN.values())


def test_a_listed_method_is_called_by_the_trainer_itself():
    """One that transformers keeps and no longer calls would be overridden for nothing."""
    source = inspect.getsource(Trainer)
    uncalled = [name for name in OVERRIDDEN if f"self.{name}" not in source]
    assert uncalled == []


def test_nothing_is_set_on_the_trainer_from_outside():
    tree = ast.parse(inspect.getsource(stage))
    targets = [
        target
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    assert len(targets) > 20
    assert [ast.unparse(target) for target in targets if isinstance(target, ast.Attribute)] == []


def test_what_a_start_goes_on_from_stays_as_it_is():
    with pytest.raises(FrozenInstanceError):
        ResumePoint().checkpoint = "checkpoint-3"


def test_origins_leave_a_batch():
    batch = {"input_ids": 1, "samples": ["a", "b"]}
    assert take_origins(batch) == ["a", "b"]
    assert batch == {"input_ids": 1}
