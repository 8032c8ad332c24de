"""The multimodal model. Importing it makes transformers' Auto classes know `llava_ov_manager`."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.modeling import LlavaOVManagerForConditionalGeneration, LlavaOVManagerModel

AutoConfig.register(LlavaOVManagerConfig.model_type, LlavaOVManagerConfig)
AutoModel.register(LlavaOVManagerConfig, LlavaOVManagerModel)
AutoModelForImageTextToText.register(LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration)
AutoModelForMultimodalLM.register(LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration)
AutoImageProcessor.register(LlavaOVManagerConfig, LlavaOVManagerImageProcessor)
AutoProcessor.register(LlavaOVManagerConfig, LlavaOVManagerProcessor)

__all__ = ["LlavaOVManagerConfig", "LlavaOVManagerForConditionalGeneration", "LlavaOVManagerModel"]
