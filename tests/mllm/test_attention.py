"""Which attention runs where; what it computes is tested with the model and with packed samples."""

import pytest

from llava.errors import LlavaError
from llava.mllm import attention

LACKS = {  # of capability, package, GPU, 16 bits
    ((7, 5), True, True, True): r"^flash_attention_2 needs a GPU of capability 8 or more; sdpa does not$",
    ((9, 0), False, True, True): r"needs the package flash_attn: pip install --no-build-isolation -e '.\[flash\]'",
    ((9, 0), True, True, False): "needs bfloat16 or float16",
    (None, True, False, True): "needs a GPU;",
}


@pytest.mark.parametrize(
    ("capability", "installed", "on_gpu", "half", "name"),
    [
        ((8, 0), True, True, True, "flash_attention_2"),
        ((9, 0), True, True, True, "flash_attention_2"),
        ((7, 5), True, True, True, "sdpa"),  # flash-attn 2 refuses it at its first kernel
        ((9, 0), False, True, True, "sdpa"),
        ((9, 0), True, True, False, "sdpa"),
        (None, True, False, True, "sdpa"),
    ],
)
def test_flash_attention_where_the_hardware_has_it(monkeypatch, capability, installed, on_gpu, half, name):
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr(attention.torch.cuda, "get_device_capability", lambda: capability)
    assert attention.best_attention(on_gpu, half) == name
    if name == "flash_attention_2":
        attention.check_can_run("flash_attention_2", on_gpu, half)
    else:
        with pytest.raises(LlavaError, match=LACKS[capability, installed, on_gpu, half]):
            attention.check_can_run("flash_attention_2", on_gpu, half)
    attention.check_can_run("sdpa", on_gpu, half)
