"""The model's parts, by the names of their parameters: trained, counted and converted part by part.

The parts are the reference's three groups of learning rates: `cross_modal` and `heads` are new in pre-training and
learn faster; towers, embeddings and the temperature of ITC learn at the base rate.
"""

MODEL_TYPE = "manager_tower"
# Towers that are known to begin with a token that stands for the whole, by transformers' model_type.
TEXT_TOWERS = ("roberta", "bert", "xlm-roberta", "camembert")
IMAGE_TOWERS = ("clip_vision_model", "vit", "dinov2", "dinov2_with_registers")
TEXT_TOWER, IMAGE_TOWER = "model.text_tower.", "model.image_tower."
# Parameter names start with these.
PREFIXES = {
    "text_tower": (TEXT_TOWER,),
    "image_tower": (IMAGE_TOWER,),
    "embeddings": ("model.type_embedding.", "model.text_layer_embedding.", "model.image_layer_embedding."),
    "temperature": ("heads.itc.temperature",),
    "cross_modal": (
        "model.text_gate.",
        "model.image_gate.",
        "model.text_projection.",
        "model.image_projection.",
        "model.cross_modal.",
        "model.text_pooler.",
        "model.image_pooler.",
        "heads.itc.text.",
        "heads.itc.image.",
    ),
    "heads": ("heads.mlm.", "heads.itm.", "heads.classifier."),
}
