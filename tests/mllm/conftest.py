"""Models whose managers all do something, and a batch for them."""

import pytest
import torch

from llava.data.schema import Turn
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.managers import AdaptiveManager


@pytest.fixture
def make_managed(make_model):
    """A function: query (None: static) to a model whose managers, static and adaptive, have random weights."""

    def make(query: str | None, **fields):
        model = make_model(fusion=ManagerConfig(interval=2, query=query, **fields))
        generator = torch.Generator().manual_seed(1)
        for manager in model.model.fusion.managers:
            if isinstance(manager, AdaptiveManager):
                manager.gate.data = torch.randn(manager.gate.shape, generator=generator)
        return model

    return make


@pytest.fixture
def batch(make_processor, make_image):
    """An image of many tiles beside two images, left-padded."""
    return make_processor().encode_prompts(
        [
            ((Turn("human", "<image>\nWhat is in the picture?"),), [make_image(150, 97)]),
            ((Turn("human", "<image> <image>\nWhich?"),), [make_image(60, 40, 1), make_image(40, 90, 2)]),
        ]
    )
