"""What reading a prompt costs, against sizes that are counted in the prompt itself."""

from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.eval.questions import prompt_cost
from llava.fusion.configs.manager import ManagerConfig
from llava.mllm.cost import forward_cost
from tests.fusion.twins.twin import question_of


def test_the_cost_of_a_prompt_whose_images_and_video_are_asked_about(make_model, make_processor, make_image):
    """Two images and a video; and an image without a question, which asks itself."""
    model, processor = make_model(fusion=ManagerConfig(query="cross")), make_processor()
    engine, config = Engine(model.eval(), processor), model.config
    cuts, cost = processor.image_processor, forward_cost(config)
    images, video = [make_image(60, 40), make_image(40, 90)], [make_image(70, 40)] * 3
    dialogue = Dialogue((Turn("human", "<image> <image> <video>\nWhich is it?"),), images, [video])
    ids = processor.prompt_ids(dialogue)
    shown = [cuts.layout(image.size, True).num_tokens for image in images] + [cuts.video_layout(3).num_tokens]
    asked = len(question_of(config, ids, ids.index(config.image_token_id)))
    assert asked > 3
    pairs = sum(tokens**2 for tokens in shown)
    expected = cost(2 + 3, len(ids), 1, None, sum(shown), pairs, 3, 3 * asked, sum(shown) * asked)
    assert prompt_cost(engine, dialogue) == expected
    silent = Dialogue((Turn("human", "<image>"),), images[:1], [])
    layout, length = cuts.layout(images[0].size, False), len(processor.prompt_ids(silent))
    tokens = layout.num_tokens
    expected = cost(layout.num_crops, length, 1, None, tokens, tokens**2, 1, tokens, tokens**2)
    assert prompt_cost(engine, silent) == expected
