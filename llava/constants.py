"""Names and numbers that every part of the code shares."""

from typing import Literal

IGNORE_INDEX = -100  # label of a position that carries no loss, torch's and transformers' convention
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP: an image's channels, on [0, 1]
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MASKED_WORDS = 0.15  # of a text's tokens, for MLM; of these 80% become the mask, 10% another token, 10% stay
IMAGE_TOKEN = "<image>"  # one per image in text; expanded to the image's token count before the model
VIDEO_TOKEN = "<video>"  # likewise for a video
SYSTEM_MESSAGE = "You are a helpful assistant."  # Qwen2's default system turn
MODEL_TYPE = "llava_ov_manager"  # of this model, in config.json
# Checkpoints that `llava convert import` makes ours of: the reference's code and its kin, and transformers' own format.
RELEASED_MODEL_TYPES = ("llava_qwen", "llava_qwen_manager", "llava")
ONEVISION_MODEL_TYPE = "llava_onevision"
# What a model can be made of, by transformers' model_type of the part's own configuration. SigLIP2's models
# but NaFlex are of SigLIP's type, Qwen2.5 is of Qwen2's.
TOWER_TYPES = ("siglip_vision_model", "clip_vision_model", "dinov2", "dinov2_with_registers")
LANGUAGE_MODEL_TYPES = ("qwen2", "qwen3")
# Of a llava_onevision model, as transformers publishes them: every token is a patch. Its language model is any of ours.
ONEVISION_TOWER_TYPES = TOWER_TYPES[:1]
Merge = Literal["flat", "spatial", "spatial_unpad"]  # how an image's crops become one sequence, see TilingConfig
ADAPTER_FOLDER = "adapter"  # inside a checkpoint that was trained with LoRA; adapters in peft's format
FLASH_ATTENTION = "flash_attention_2"  # transformers' name
INSTALL_FLASH = "pip install --no-build-isolation -e '.[flash]'"  # with the torch that is there
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # this machine
MEBIBYTE = 2**20
DATA_OPTION = "--data (of llava analyze: --data_root)"  # by which a task's data are named
FILE_LIMITS = {"image": 64 * MEBIBYTE, "video": 1024 * MEBIBYTE}  # bytes of a file: fetched, unpacked, named in a chat
