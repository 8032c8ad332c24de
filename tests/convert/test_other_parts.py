"""Every kind of tower with every kind of language model: two folders imported, and exported to run without us."""

import json
import shutil
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

from llava.anyres import TilingConfig
from llava.checkpoint.compose import load_parts
from llava.cli import main
from tests.convert.conftest import load_strictly
from tests.convert.elsewhere import run_elsewhere
from tests.parts import LANGUAGE_MODELS, TOWERS

PAIRS = {f"{tower} {text}": (tower, text) for tower, text in product(TOWERS, LANGUAGE_MODELS)}
for rarer in ("dinov2_giant qwen2.5", "registers qwen3"):
    del PAIRS[rarer]  # one of each will do
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
LEADING = {"siglip2": 0, "clip": 1, "dinov2": 1, "dinov2_giant": 1, "registers": 1 + 2}
ELSEWHERE = """
import json
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

torch.set_num_threads(1)
folders, inputs, output = sys.argv[1:4]
inputs, results, remote = torch.load(inputs, weights_only=False), {}, {"trust_remote_code": True}
for name, folder in json.loads(folders).items():
    model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **remote)
    assert not any(loading.values()), loading
    processor = AutoProcessor.from_pretrained(folder, **remote)
    prompt = processor.apply_chat_template(inputs["asked"], add_generation_prompt=True)
    batch = processor(text=prompt, **inputs["shown"])
    with torch.no_grad():
        logits = model(**batch).logits
        ids = model.generate(**batch, max_new_tokens=3, do_sample=False)[0, batch["input_ids"].shape[1] :]
    image, text = inputs["asked"][0]["content"]
    asked = [{"role": "user", "content": [image | {"image": inputs["shown"]["images"][0]}, text]}]
    pipe = pipeline("image-text-to-text", model=folder, **remote)
    answer = pipe(text=asked, max_new_tokens=3, return_full_text=False)[0]["generated_text"]
    results[name] = dict(batch), logits, processor.decode(ids, skip_special_tokens=True), answer
torch.save(results, output)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory, make_config, tiny_tokenizer):
    """{name of a tower or language model: its folder}; every weight is random, and a tower has a layer too many."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    models = {}
    for name, tower in TOWERS.items():
        models[name] = AutoModel.from_config(type(tower)(**{**tower.to_dict(), "num_hidden_layers": 5}))
    for name, (kind, fields) in LANGUAGE_MODELS.items():
        text = make_config(TilingConfig(), None, None, kind, **fields).text_config
        models[name] = AutoModelForCausalLM.from_config(text)
        tiny_tokenizer.save_pretrained(folder / name)
    for name, model in models.items():
        for parameter in model.parameters():  # class tokens and registers begin at zero, norms and scales at one
            parameter.data += 0.1 * torch.randn(parameter.shape)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


@pytest.fixture(scope="module")
def imported(parts, tmp_path_factory):
    """{pair: folder}."""
    out = {pair: tmp_path_factory.mktemp("imported") / pair for pair in PAIRS}
    for pair, (tower, text) in PAIRS.items():
        arguments = ["--vision_tower", parts[tower], "--language_model", parts[text], "--out", out[pair]]
        assert main(["convert", "import", *map(str, arguments)]) == 0
    return out


@pytest.fixture(scope="module")
def shown(make_image):
    return {"images": [make_image(150, 97)]}


@pytest.fixture(scope="module")
def elsewhere(imported, shown, tmp_path_factory):
    """{pair: what a Python without this package computes of its export}."""
    folder, out = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("exported")
    for pair, source in imported.items():
        words = [str(source), "--out", str(out / pair), "--format", "remote_code"]
        assert main(["convert", "export", *words]) == 0
    torch.save({"asked": ASKED, "shown": shown}, folder / "inputs.pt")
    folders = json.dumps({pair: str(out / pair) for pair in PAIRS})
    run_elsewhere(ELSEWHERE, folder, folders, folder / "inputs.pt", folder / "results.pt")
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_parts_then_the_import_then_the_export_compute_the_same(pair, parts, imported, shown, elsewhere):
    """transformers' own models of the two folders, joined by hand with the new projector; then without this package."""
    model, processor = load_strictly(imported[pair]), AutoProcessor.from_pretrained(imported[pair])
    batch = processor(text=processor.apply_chat_template(ASKED, add_generation_prompt=True), **shown)
    tower_name, text_name = PAIRS[pair]
    tower, text = AutoModel.from_pretrained(parts[tower_name]), AutoModelForCausalLM.from_pretrained(parts[text_name])
    with torch.no_grad():
        states = tower(batch["pixel_values"], output_hidden_states=True).hidden_states
        assert len(states) == 1 + 5
        patches = states[4][0, LEADING[tower_name] :]
        embeddings = text.get_input_embeddings()(batch["input_ids"])
        embeddings[batch["input_ids"] == processor.image_token_id] = model.model.multi_modal_projector(patches)
        expected = text(inputs_embeds=embeddings).logits
        found = model(**batch).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    its_batch, its_logits, its_answer, piped = elsewhere[pair]
    assert its_batch.keys() == batch.keys()
    assert all(torch.equal(its_batch[key], batch[key]) for key in batch)
    assert torch.equal(its_logits, found)
    ids = model.generate(**batch, max_new_tokens=3, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert its_answer == piped == processor.decode(ids, skip_special_tokens=True) != ""


@pytest.mark.parametrize("tower", ["dinov2", "registers"])
def test_a_mask_token_that_is_not_there_changes_nothing(tower, parts, tmp_path, convert):
    """It stands for masked patches in DINOv2's own pre-training alone."""
    text = ("--language_model", parts["qwen3"])
    whole = load_strictly(convert("--vision_tower", parts[tower], *text, out="whole")[0]).state_dict()
    shutil.copytree(parts[tower], tmp_path / "tower")
    weights = load_file(tmp_path / "tower/model.safetensors")
    assert weights.pop("embeddings.mask_token").any()
    save_file(weights, tmp_path / "tower/model.safetensors", metadata={"format": "pt"})
    folder, _ = convert("--vision_tower", tmp_path / "tower", *text, out="without")
    model = load_strictly(folder)
    found = model.state_dict()
    load_parts(model, tmp_path / "tower", parts["qwen3"])  # as stage 1 does
    assert not found.pop("model.vision_tower.embeddings.mask_token").any()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    assert len(found) == len(whole) - 1


def change_size(source, folder, size) -> None:
    shutil.copytree(source, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "image_size": size}))


@pytest.mark.parametrize("tower", TOWERS)
def test_a_size_as_height_and_width(tower, parts, tmp_path, convert):
    side = TOWERS[tower].image_size
    change_size(parts[tower], tmp_path / "tower", [side, side])
    folder, _ = convert("--vision_tower", tmp_path / "tower", "--language_model", parts["qwen3"])
    assert load_strictly(folder).config.vision_config.image_size == side
    assert AutoProcessor.from_pretrained(folder).image_processor.size == side


@pytest.mark.parametrize("tower", TOWERS)
def test_a_size_that_is_no_square_is_refused(tower, parts, tmp_path, refused):
    change_size(parts[tower], tmp_path / "tower", [64, 48])
    error = refused("--vision_tower", tmp_path / "tower", "--language_model", parts["qwen3"])
    assert f"{tmp_path}/tower/config.json: the tower's image_size must be of a square; found 64 x 48" in error


def test_every_pair_is_another_model(elsewhere):
    logits = [logits for _, logits, _, _ in elsewhere.values()]
    assert len(logits) == len(TOWERS) * len(LANGUAGE_MODELS) - 2 == 8
    assert not any(torch.equal(a, b) for i, a in enumerate(logits) for b in logits[:i] if a.shape == b.shape)
