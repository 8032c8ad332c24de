"""Which attention each block of a cross-modal layer asks for."""

from functools import partial

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

from tests.two_tower.tiny import tiny_model

TOKENS = {"text": 4, "image": 5}


@pytest.fixture
def asked(monkeypatch):
    """What is asked for from now on: (implementation, queries, keys); all are answered by transformers' sdpa."""
    calls = []
    functions = AttentionInterface()
    sdpa = functions["sdpa"]
    sides = {count: side for side, count in TOKENS.items()}

    def answer(name, module, query, key, value, mask, **options):
        assert mask is None or name == "sdpa"
        calls.append((name, sides[query.shape[2]], sides[key.shape[2]]))
        return sdpa(module, query, key, value, mask, **options)

    for name in ("sdpa", "flash_attention_2"):
        functions[name] = partial(answer, name)
    monkeypatch.setattr("llava.two_tower.cross_modal.ALL_ATTENTION_FUNCTIONS", functions)
    return calls


@pytest.mark.parametrize("padded", [True, False])
def test_flash_attention_is_asked_for_where_no_key_is_masked(asked, padded):
    model = tiny_model("pretrain", cross_modal_layers=1).model
    texts, images = (torch.randn(2, 2, count, 16) for count in TOKENS.values())
    mask = torch.tensor([[True] * 4, [True, True, False, False]])[:, None, None] if padded else None
    expected = model.cross_modal(texts, images, mask)
    assert {name for name, _, _ in asked} == {"sdpa"}
    asked.clear()
    model.config._attn_implementation = "flash_attention_2"
    states = model.cross_modal(texts, images, mask)
    of_text = "sdpa" if padded else "flash_attention_2"
    assert asked == [
        (of_text, "text", "text"),
        ("flash_attention_2", "text", "image"),
        ("flash_attention_2", "image", "image"),
        (of_text, "image", "text"),
    ]
    assert all(map(torch.equal, states, expected))
