"""bfloat16 where the GPU has it: one that only emulates it takes several times as long as in float32 or float16."""

from types import SimpleNamespace

import pytest
import torch

from llava.engine.placement import best_dtype
from llava.errors import LlavaError
from llava.train.loop.precision import trains_in_bf16
from llava.train.ranks.preflight import preflight

DEVICE = "Tesla T4"


@pytest.fixture(params=[False, True], ids=["emulates", "has"])
def has_bf16(request, monkeypatch) -> bool:
    """Whether the GPU that this machine seems to have has bfloat16; torch says yes to the emulation of it, too."""
    of_gpu = SimpleNamespace(name=DEVICE, total_memory=16 << 30)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda _: of_gpu,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or request.param,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    return request.param


def test_auto_is_bf16_where_the_gpu_has_it(has_bf16, tiny_recipe):
    assert trains_in_bf16(tiny_recipe("1")) == has_bf16
    assert best_dtype(torch.device("cuda")) == (torch.bfloat16 if has_bf16 else torch.float16)
    assert best_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_bf16_by_name_is_refused_where_the_gpu_would_emulate_it(has_bf16, tiny_recipe, capsys, precision):
    recipe = tiny_recipe("1", **{"run.precision": precision})
    if precision == "bf16" and not has_bf16:
        with pytest.raises(LlavaError, match=rf"^run\.precision bf16: {DEVICE} has no bfloat16; auto and fp32 train"):
            preflight(recipe)
    else:
        preflight(recipe)
        assert DEVICE in capsys.readouterr().out


def test_bf16_by_name_on_the_cpu(tiny_recipe, capsys):
    recipe = tiny_recipe("1", **{"run.precision": "bf16"})
    preflight(recipe)
    assert trains_in_bf16(recipe)
    assert DEVICE not in capsys.readouterr().out
