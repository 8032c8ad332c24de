"""A model in pieces answers as the whole one; what of it is left on the disk is read when it is used."""

import shutil

import pytest

from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.engine.placement import on_cpu
from llava.errors import LlavaError

PIECES = {
    "model.vision_tower": "disk",
    "model.multi_modal_projector": "cpu",
    "model.image_newline": "disk",
    "model.fusion": "disk",
    **{f"model.language_model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb")},
    **{f"model.language_model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(6)},
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def turns(make_image):
    """Two prompts, the second of which goes on from the first."""
    first = Dialogue([Turn("human", "What is in the picture?")], [make_image(100, 70)])
    return [first, Dialogue([*first.turns, Turn("gpt", "A car."), Turn("human", "Which?")], first.images)]


@pytest.mark.parametrize(("device", "places"), [(PIECES, "disk + cpu"), ("spread", "cpu")])
def test_pieces_answer_as_the_whole(engine, tiny_model_dir, turns, device, places):
    pieces = Engine.from_pretrained(tiny_model_dir, device=device)
    assert pieces.describe() == f"{places}, float32, sdpa"
    assert pieces.device.type == "cpu"
    assert pieces.generate(turns, max_new_tokens=8) == engine.generate(turns, max_new_tokens=8)
    kept, whole = pieces.new_cache(), engine.new_cache()
    for turn in turns:
        streamed = list(pieces.stream(turn, max_new_tokens=8, kept=kept))
        assert streamed == list(engine.stream(turn, max_new_tokens=8, kept=whole))
    assert kept.usage == whole.usage


def test_what_cannot_be_spread_is_refused(tiny_model_dir, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(LlavaError, match="cannot be merged into a model in pieces; merge them first: llava convert"):
        Engine.from_pretrained(folder, device="spread")
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("llava.engine.engine.four_bits", lambda *_: {})
    with pytest.raises(LlavaError, match="4 bits goes to one device"):
        Engine.from_pretrained(tiny_model_dir, device="spread", load_4bit=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(LlavaError, match="device spread puts one model on all GPUs: one process, found 2"):
        on_cpu("spread")
