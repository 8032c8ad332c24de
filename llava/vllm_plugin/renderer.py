"""Prompts as vLLM's renderer reads them, but for placeholders of pictures that are not there."""

from typing import Any

from vllm.renderers.hf import HfRenderer

from llava.vllm_plugin.requests import check_places


class PromptRenderer(HfRenderer):
    """vLLM's, which looks at placeholders only where a prompt comes with pictures."""

    def process_for_engine(self, prompt: Any, *args: Any, **options: Any) -> Any:
        """As vLLM's. Raises DataError for placeholders in a prompt without pictures."""
        self._check(prompt)
        return super().process_for_engine(prompt, *args, **options)

    async def process_for_engine_async(self, prompt: Any, *args: Any, **options: Any) -> Any:
        """As process_for_engine."""
        self._check(prompt)
        return await super().process_for_engine_async(prompt, *args, **options)

    def _check(self, prompt: Any) -> None:
        if not prompt.get("multi_modal_data"):
            check_places(prompt.get("prompt_token_ids", ()), {}, self.model_config.hf_config)
