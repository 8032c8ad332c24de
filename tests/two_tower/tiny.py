"""Two-tower models of a few thousand weights."""

import torch
from transformers import CLIPVisionConfig, RobertaConfig

from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.modeling import TwoTowerForTask


def tiny_config(task, vocab_size=40, image_size=16, **options):
    text = RobertaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=60,
        type_vocab_size=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=image_size,
        patch_size=8,
    )
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "itc_width": 8}
    layers = {"text_layers": 2, "image_layers": 2, "cross_modal_layers": 2}
    return TwoTowerConfig(text_config=text, vision_config=vision, task=task, **{**sizes, **layers, **options})


def tiny_model(task, seed=0, **options):
    """Weights are larger than at the start of training, so that scores differ."""
    torch.manual_seed(seed)
    model = TwoTowerForTask(tiny_config(task, **options)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model
