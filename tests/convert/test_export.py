"""Folders with modeling files of their own, loaded where this package cannot be imported; what export refuses."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.dynamic_module_utils import get_imports

from llava.anyres import TilingConfig
from llava.convert import to_remote_code
from llava.data.processor import LlavaOVManagerProcessor
from llava.errors import LlavaError
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.methods import METHODS
from llava.mllm import LlavaOVManagerForConditionalGeneration
from tests.conftest import GRID, QUERIES
from tests.convert.elsewhere import run_elsewhere

SQUARE = TilingConfig("square")
ADAPTIVE = {
    f"adaptive {query}": ManagerConfig(interval=2, query=query, question=rule)
    for query, rule in zip(QUERIES, ("turn", "turn", "released", "turn"))
}
# Of every method but managers, small where its own sizes are not.
SMALL = {
    "cli_reconstruction": {"rank": 5},
    "concat": {"vision_layers": (1, 3)},
    "igva": {"groups": (1, 4), "heads": 2, "head_width": 4, "blocks": 2},
    "mmfuser": {"vision_layers": (1, 3), "heads": 2, "points": 2},
    "sti": {"pool": 5},
}
OTHERS = {
    name: (GRID if kind().takes_tiles else SQUARE, kind(**SMALL.get(name, {})))
    for name, kind in METHODS.items()
    if name not in ("none", "manager")
}
CASES = {
    "baseline": (GRID, None),
    "paper": (GRID, "paper"),
    "paper square": (SQUARE, "paper"),
    "released": (GRID, "released"),
    "grid only": (GRID, ManagerConfig(interval=2, scope="grid")),
    "newline": (replace(GRID, newline_after_one_crop=True, unpad_rounding="round"), "paper"),
    **{name: (GRID, managers) for name, managers in ADAPTIVE.items()},
    "adaptive square": (SQUARE, ADAPTIVE["adaptive cross"]),
    **OTHERS,
}
THOROUGH = "adaptive cross"
# One image, which is tiled; three, of which none is; an image and a video.
DIALOGUES = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}],
    [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]},
        {"role": "assistant", "content": "A car."},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "And now?"}]},
    ],
    [{"role": "user", "content": [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "A red car?"}]}],
]
WITHOUT_VIDEOS = {"sti"}
# Runs in a Python that cannot import llava: what each folder's own code makes of the dialogues and what they show.
ELSEWHERE = """
import json, sys
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

torch.set_num_threads(1)
folders, inputs, output = sys.argv[1:4]
inputs = torch.load(inputs, weights_only=False)
shown, dialogues = inputs["shown"], inputs["dialogues"]
results = {}
for name, folder in json.loads(folders).items():
    remote = {"trust_remote_code": True}
    model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **remote)
    assert not any(loading.values()), loading
    assert type(AutoConfig.from_pretrained(folder, **remote)) is type(model.config)
    assert type(AutoModel.from_pretrained(folder, **remote)) is type(model.model)
    processor = AutoProcessor.from_pretrained(folder, **remote)
    assert type(AutoImageProcessor.from_pretrained(folder, **remote)) is type(processor.image_processor)
    results[name] = []
    for dialogue, visual in zip(dialogues, shown):
        if name in inputs["without_videos"] and "videos" in visual:
            continue
        prompt = processor.apply_chat_template(dialogue, add_generation_prompt=True)
        batch = processor(text=prompt, **visual)
        with torch.no_grad():
            outputs = model(**batch).logits, model.generate(**batch, max_new_tokens=5)
        results[name].append((dict(batch), *outputs))
    if name == inputs["thorough"]:
        pipe = pipeline("image-text-to-text", model=folder, **remote)
        image = {"type": "image", "image": shown[0]["images"][0]}
        asked = [{"role": "user", "content": [image, {"type": "text", "text": "What is in the picture?"}]}]
        results["pipeline"] = pipe(text=asked, max_new_tokens=5, return_full_text=False)[0]["generated_text"]
        model.save_pretrained(inputs["resaved"])
        processor.save_pretrained(inputs["resaved"])
        again = AutoModelForImageTextToText.from_pretrained(inputs["resaved"], **remote)
        processor = AutoProcessor.from_pretrained(inputs["resaved"], **remote)
        with torch.no_grad():
            results["resaved"] = again(**processor(text=prompt, **visual)).logits
            pixels = processor.image_processor([visual["images"]], as_uint8=True)
            pixels |= processor.image_processor.encode_videos([visual["videos"]], as_uint8=True)
            results["uint8"] = model(**{**batch, **pixels}).logits
        results["foreign"] = [m for m in ("llava", "decord", "lmms_eval", "peft") if m in sys.modules]
torch.save(results, output)
"""


@pytest.fixture(scope="module")
def shown(make_image):
    """Images and videos of DIALOGUES, as the processor takes them."""
    image = make_image(150, 97)
    video = [make_image(80, 60, seed) for seed in range(3)]
    return [
        {"images": [image]},
        {"images": [make_image(40, 220, 1), image, image]},
        {"images": [image], "videos": [video]},
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, save_model, export):
    """{case: exported folder}."""
    folder = tmp_path_factory.mktemp("export")
    for name, (tiling, managers) in CASES.items():
        save_model(folder / "model" / name, tiling, managers)
        assert export(folder / "model" / name, "--out", folder / "out" / name, "--format", "remote_code") == 0
    return {name: folder / "out" / name for name in CASES}


@pytest.fixture(scope="module")
def elsewhere(exported, shown, tmp_path_factory):
    """What a Python without this package computes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    inputs = {"shown": shown, "dialogues": DIALOGUES, "thorough": THOROUGH, "resaved": str(folder / "resaved")}
    inputs["without_videos"] = WITHOUT_VIDEOS
    torch.save(inputs, folder / "inputs.pt")
    folders = json.dumps({name: str(path) for name, path in exported.items()})
    run_elsewhere(ELSEWHERE, folder, folders, folder / "inputs.pt", folder / "results.pt")
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_equal_without_this_package_and_with_it(name, elsewhere, exported, shown):
    original = exported[name].parents[1] / "model" / name
    model = LlavaOVManagerForConditionalGeneration.from_pretrained(original)
    processor = LlavaOVManagerProcessor.from_pretrained(original)
    here, loading = AutoModelForImageTextToText.from_pretrained(exported[name], output_loading_info=True)
    assert type(here) is LlavaOVManagerForConditionalGeneration
    assert not any(loading.values())
    assert type(AutoProcessor.from_pretrained(exported[name])) is LlavaOVManagerProcessor
    assert len(elsewhere[name]) == len(DIALOGUES) - (name in WITHOUT_VIDEOS)
    for dialogue, visual, (its_batch, its_logits, its_ids) in zip(DIALOGUES, shown, elsewhere[name]):
        prompt = processor.apply_chat_template(dialogue, add_generation_prompt=True)
        batch = processor(text=prompt, **visual)
        assert its_batch.keys() == batch.keys()
        assert all(torch.equal(its_batch[key], batch[key]) for key in batch)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, its_logits)
            assert torch.equal(here(**batch).logits, its_logits)
        assert torch.equal(model.generate(**batch, max_new_tokens=5), its_ids)


def test_every_case_is_another_model(elsewhere):
    logits = [[logits for _, logits, _ in elsewhere[name]] for name in CASES]
    assert not any(all(map(torch.equal, a, b)) for i, a in enumerate(logits) for b in logits[:i])


def test_pipeline_and_saving_again_without_this_package(elsewhere, exported):
    batch, _, generated = elsewhere[THOROUGH][0]
    answer = generated[0, batch["input_ids"].shape[1] :]
    processor = LlavaOVManagerProcessor.from_pretrained(exported[THOROUGH])
    assert elsewhere["pipeline"] == processor.decode(answer, skip_special_tokens=True)
    assert torch.equal(elsewhere["resaved"], elsewhere[THOROUGH][-1][1])
    assert torch.equal(elsewhere["uint8"], elsewhere[THOROUGH][-1][1])
    assert elsewhere["foreign"] == []


def test_weights_are_carried_as_they_are(exported):
    for name in CASES:
        before, after = (
            load_file(folder / "model.safetensors")
            for folder in (exported[name].parents[1] / "model" / name, exported[name])
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_files_need_nothing_but_the_core(exported):
    """transformers refuses custom code whose imports are not installed; extras as decord must not count."""
    files = sorted(exported["paper"].glob("*.py"))
    assert {"llava_ov_manager.py", "anyres.py", "fusion_managers.py", "mllm_modeling.py", "data_processor.py"} <= {
        file.name for file in files
    }
    needed = {name for file in files for name in get_imports(file)}
    assert needed - set(sys.stdlib_module_names) == {"torch", "transformers", "numpy", "PIL"}


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A function: {file: text} to a package of that text in place of llava's."""

    def put(files):
        for name, text in files.items():
            path = tmp_path / "llava" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(to_remote_code, "_SOURCES", tmp_path / "llava")

    return put


def test_imports_are_found_wherever_they_stand(sources, tmp_path):
    text = '''"""from llava.no import this"""
import numpy
from llava.data.images import (
    first,
    second,
)

def lazy():
    from llava.errors import Wrong
    import decord
    from decord.x import (
        y,
    )
    try:
        import av
    except ImportError:
        raise Wrong from None
    return decord, y, av
'''
    sources({"a.py": text, "data/images.py": "first = second = 1\n", "errors.py": "class Wrong(ValueError): ...\n"})
    flat, needed = to_remote_code._flattened("llava.a")
    assert needed == {"llava.data.images", "llava.errors"}
    assert "from .data_images import (\n    first,\n    second,\n)\n" in flat
    assert "    from .errors import Wrong\n" in flat
    assert '"""from llava.no import this"""' in flat
    (tmp_path / "flat.py").write_text(flat)
    assert get_imports(tmp_path / "flat.py") == ["numpy"]


@pytest.mark.parametrize("line", ["import llava.errors", "from llava import errors", "from llava.data import images"])
def test_imports_that_cannot_be_flattened_stop_the_export(sources, line):
    sources({"a.py": f"{line}\n", "errors.py": "", "data/__init__.py": "", "data/images.py": ""})
    with pytest.raises(ImportError, match=r"a\.py:1: write `from llava\.module import name`"):
        to_remote_code._flattened("llava.a")


def test_wrong_folders_are_refused_in_one_line(tmp_path, save_model, export):
    save_model(tmp_path / "model", GRID, "paper")

    def refuse(message, folder=tmp_path / "model", out=tmp_path / "out"):
        with pytest.raises(LlavaError, match=message) as caught:
            export(folder, "--out", out, "--format", "remote_code")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob("*.converting"))

    def changed(weights):
        save_file(weights, tmp_path / "model/model.safetensors")

    refuse("nowhere: no such model folder", tmp_path / "nowhere")
    refuse("model exists and is not an empty folder", out=tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    changed({name: tensor for name, tensor in weights.items() if "layer_embedding" not in name})
    refuse("1 weights are missing, first model.fusion.layer_embedding")
    changed({**weights, "model.extra": torch.zeros(1)})
    refuse("1 weights are unexpected, first model.extra")
    changed({**weights, "model.image_newline.weight": torch.zeros(3)})
    refuse("1 weights are of another shape, first model.image_newline.weight")
    (tmp_path / "model/config.json").write_text('{"model_type": "qwen2"}')
    refuse("holds a model of type 'qwen2'; expected llava_ov_manager")


def test_large_weights_leave_in_shards(tmp_path, save_model, export, monkeypatch):
    save_model(tmp_path / "model", GRID, "paper")
    monkeypatch.setattr("llava.convert.formats.MAX_SHARD_BYTES", 40_000)
    export(tmp_path / "model", "--out", tmp_path / "out", "--format", "remote_code")
    assert len(list(Path(tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    models = [AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("model", "out")]
    weights = [model.state_dict() for model in models]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
