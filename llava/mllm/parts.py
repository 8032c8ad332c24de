"""The model's parts, by the names of their parameters: trained, counted and converted part by part."""

VISION_TOWER, PROJECTOR, FUSION = "model.vision_tower.", "model.multi_modal_projector.", "model.fusion."
NEWLINE, LANGUAGE_MODEL = "model.image_newline.", "model.language_model."
# Kept so that checkpoints load strictly; no state that the model uses passes through them, so they have no gradient:
# the norm behind the tower's last layer, by both its names, and what stands for a masked patch in pre-training.
POST_LAYERNORM = f"{VISION_TOWER}post_layernorm."
FINAL_NORMS = (POST_LAYERNORM, f"{VISION_TOWER}layernorm.")
MASK_TOKEN = f"{VISION_TOWER}embeddings.mask_token"
UNUSED = (*FINAL_NORMS, MASK_TOKEN)
HEAD, EMBEDDINGS = "lm_head.weight", f"{LANGUAGE_MODEL}embed_tokens.weight"
# Parameter names start with these; the head belongs to the language model, as do its embeddings.
PREFIXES = {
    "vision_tower": (VISION_TOWER,),
    "projector": (PROJECTOR,),
    "fusion": (FUSION,),
    "newline": (NEWLINE,),
    "language_model": (LANGUAGE_MODEL, "lm_head."),
}
