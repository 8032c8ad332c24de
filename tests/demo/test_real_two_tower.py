"""The drawings and the text tower that `make demo-two-tower` installs: `make test-real`."""

import os
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load
from transformers import BertModel

from llava.demo import emoji_towers, emojis
from llava.demo.wheels import packaged_file
from llava.errors import LlavaError
from tests.paths import ROOT

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def drawings():
    try:
        return emojis.installed_emojis()
    except LlavaError as error:
        pytest.skip(str(error))


def test_every_name_is_drawn_by_both_fonts_and_in_one_part(drawings):
    assert len(drawings.names) == len(set(drawings.names)) == 1377
    assert {part: len(names) for part, names in drawings.parts.items()} == {"train": 991, "val": 111, "test": 275}
    assert {"beaver", "two-hump camel", "nut and bolt"} < set(drawings.names)
    sprites = [[drawings.sprite(name, style) for style in emojis.FONTS] for name in drawings.names[::7]]
    assert all(sprite.mode == "RGBa" and min(sprite.size) > 2 for pair in sprites for sprite in pair)
    coloured = np.array([[np.ptp(np.asarray(sprite)[..., :3], -1).any() for sprite in pair] for pair in sprites])
    assert coloured[:, 0].mean() > 0.9
    assert not coloured[:, 1].any()  # black and white, its edges grey


def test_minilm_is_its_file_to_the_bit_and_knows_what_words_mean(drawings, tmp_path):
    emoji_towers.write_text_tower(tmp_path / "text")
    tower = BertModel.from_pretrained(tmp_path / "text", add_pooling_layer=False)
    assert (tower.config.num_hidden_layers, tower.config.hidden_size, tower.config.vocab_size) == (6, 384, 30522)
    with zipfile.ZipFile(packaged_file(emoji_towers.PACKAGE, emoji_towers.FILE, emojis.INSTALL)) as archive:
        stored = load(archive.read("model.safetensors"))
    for name, tensor in tower.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    dog, puppy, card = emoji_towers.embed_texts(tmp_path / "text", ["a dog barks", "a puppy is barking", "credit card"])
    assert dog @ puppy > 0.7
    assert abs(dog @ card) < 0.2


def test_quickstart_at_smoke_size(drawings, tmp_path):
    """Data, towers, floors, three stages on two processes, evaluation and tables; a second start trains nothing."""
    environment = os.environ | {"QUICKSTART_DIR": f"{tmp_path}/out", "QUICKSTART_SIZE": "smoke"}
    for number, left in enumerate(((), ("towers", "pretrain", "evaluation"))):
        done = subprocess.run(
            ["bash", "scripts/quickstart_two_tower.sh"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        said = [line for line in done.stdout.splitlines() if line.startswith("== ")]
        assert not any(line.startswith(f"== {what}") for line in said for what in left), number
        retrieved = [f"{by}: retrieval.{split}" for by in ("ITC", "ITM") for split in ("test", "drawings", "names")]
        for table in ("questions: vqav2.test", *retrieved):
            assert any(line.startswith(f"== {table}, seeds 1 to 1 ") for line in said)
            assert (tmp_path / "out" / f"{table.replace(': ', '.')}.json").is_file()
        assert "retrieval: frozen towers, joined by ridge regression" in done.stdout
