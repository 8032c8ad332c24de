"""Names and numbers that every part of the code shares."""

IGNORE_INDEX = -100  # label of a position that carries no loss, torch's and transformers' convention
IMAGE_TOKEN = "<image>"  # one per image in text; expanded to the image's token count before the model
VIDEO_TOKEN = "<video>"  # likewise for a video
SYSTEM_MESSAGE = "You are a helpful assistant."  # Qwen2's default system turn
ADAPTER_FOLDER = "adapter"  # inside a checkpoint that was trained with LoRA; adapters in peft's format
