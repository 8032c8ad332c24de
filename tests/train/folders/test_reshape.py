"""What is read of a converted DeepSpeed checkpoint: tensors, and no program."""

import pickle

import pytest
import torch
from torch import nn

from llava.train.folders.reshape import _read


@pytest.mark.parametrize("wrap", [lambda flat: flat, lambda flat: {"param": flat.view(2, 3), "cat_dim": 0}])
def test_a_state_has_its_parameter_s_shape(tmp_path, wrap):
    flat = torch.arange(6.0)
    torch.save(wrap(flat), tmp_path / "fp32.pt")
    state = _read(tmp_path / "fp32.pt", nn.Parameter(torch.zeros(2, 3)))
    assert torch.equal(state, torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))


class _Program:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_pickle_of_a_program_is_not_run(tmp_path):
    torch.save({"param": _Program(tmp_path / "it ran")}, tmp_path / "fp32.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        _read(tmp_path / "fp32.pt", nn.Parameter(torch.zeros(1)))
    assert not (tmp_path / "it ran").exists()
