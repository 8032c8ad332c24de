"""What the model is asked under the two protocols, on MMMU, where they differ most."""

import pytest

from llava.engine.engine import Engine
from llava.eval.harness import Job, run
from tests.eval.benchmarks.twins import scripted, write_twin
from tests.eval.benchmarks.unjudged import MMMU


@pytest.fixture
def asked(tiny_model_dir, tmp_path, monkeypatch):
    """A function: protocol to (text, image sizes, longest answer) of every document, in order."""
    data = write_twin(MMMU, tmp_path / "data")
    answer = scripted(MMMU.oracle)

    def asked(protocol: str) -> list[tuple]:
        seen = []

        def generate(engine, dialogues, **settings):
            longest = settings["max_new_tokens"]
            seen.extend((turns[-1].text, [image.size for image in images], longest) for turns, images, *_ in dialogues)
            return answer(engine, dialogues)

        monkeypatch.setattr(Engine, "generate", generate)
        out = str(tmp_path / protocol)
        run(Job(str(tiny_model_dir), "mmmu_val", str(data), out, batch_size=4, device="cpu", protocol=protocol))
        return sorted(seen, key=lambda entry: entry[0].split("(document")[1])

    return asked


def test_the_paper_puts_images_in_front_and_keeps_their_names(asked):
    one, two, three, four = asked("paper")
    assert one[0] == (
        "<image>\n<image 1> Who? (document 0)\nA. Dali\nB. Miro\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert two[0].startswith("<image> <image>\nWhich is like <image 1>? (document 1)\nA. <image 2>\nB. None")
    assert three[0].endswith("(document 2)\n\nAnswer the question using a single word or phrase.")
    first, second = (40, 60), (50, 55)
    assert [sizes for _, sizes, _ in (one, two, three, four)] == [[first], [first, second], [first], [first]]
    assert {longest for *_, longest in (one, two, three, four)} == {16}


def test_the_harness_puts_images_where_their_names_stood(asked):
    one, two, *_ = asked("harness")
    assert one[0].startswith("<image>\nWho? (document 0)")
    assert two[0].startswith("Which is like<image>? (document 1)\nA.<image>B. None")
    assert two[1:] == ([(40, 60), (50, 55)], 128)
