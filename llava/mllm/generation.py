"""transformers' generate, for prompts with images: what it asks of the model before the first token."""

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, ProcessorMixin

from llava.errors import LlavaError
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.guidance import questions_for_features
from llava.request_errors import of_request


class MultimodalGenerationMixin(GenerationMixin):
    """Questions guide the features of images, and prompts that cannot be answered are refused."""

    config: LlavaOVManagerConfig
    get_input_embeddings: Any  # the model's

    def generate(self, *args: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
        """transformers' own. tokenizer: for stop strings; `transformers serve` gives the processor that holds it."""
        if isinstance(tokenizer, ProcessorMixin):
            tokenizer = tokenizer.tokenizer
        return super().generate(*args, tokenizer=tokenizer, **kwargs)  # type: ignore[misc]  # see below

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        """Called by generate, which then encodes images and videos; what guides their features is added here."""
        if self.config.fusion.guided:
            embed = self.get_input_embeddings()
            model_kwargs |= questions_for_features(self.config, embed, inputs_tensor, model_kwargs)
        return super()._maybe_prepare_encoder_kwargs_for_generation(  # type: ignore[misc]  # see below
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )

    def _validate_generation_mode(
        self, generation_mode: Any, generation_config: GenerationConfig, generation_mode_kwargs: dict[str, Any]
    ) -> None:
        """Called by generate. Chunks of the prompt may part an image, or an image and the question about it."""
        # transformers wants of its models that device and dtype can be set, which mypy finds not to be so.
        super()._validate_generation_mode(  # type: ignore[misc]
            generation_mode, generation_config, generation_mode_kwargs
        )
        fusion = self.config.fusion
        if fusion.question_rule is None and not fusion.whole_images:
            return
        if generation_config.prefill_chunk_size is not None:
            raise LlavaError(
                f"the fusion ({fusion.describe()}) needs the whole prompt, images and question, at once: "
                f"prefill_chunk_size must be None, found {generation_config.prefill_chunk_size}"
            )

    def _validate_generated_length(
        self, generation_config: GenerationConfig, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        """Called by generate. A prompt of more positions than the model was made for has no sensible answer."""
        super()._validate_generated_length(  # type: ignore[misc]  # as above
            generation_config, input_ids_length, has_default_max_length
        )
        limit = self.config.text_config.max_position_embeddings
        if input_ids_length > limit:
            too_long = f"the prompt has {input_ids_length} tokens, but the model reads at most {limit}"
            raise of_request(LlavaError(too_long))
