"""transformers' server around a model that this package loaded: nothing exported, no code of a folder's run."""

from typing import Any

import uvicorn
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState, Modality

from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.request_errors import of_request
from llava.serve.limits import Service
from llava.serve.middleware import CheckedRequests


class OneModel(ModelManager):
    """Of all the models that transformers' server could load the one that is there already."""

    def __init__(self, name: str, engine: Engine):
        super().__init__(device="cpu")  # where it would load others
        self.name, self.engine, self.force_model = name, engine, name

    def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The model and its processor."""
        return self.engine.model, self.engine.processor

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name as it is, without a revision."""
        return model_id

    @staticmethod
    def get_model_modality(model: Any, processor: Any = None) -> Modality:
        """Text and pictures."""
        return Modality.VLM

    def get_gen_models(self) -> list[dict]:  # transformers' own looks into the cache of the hub
        """What /v1/models lists."""
        return [{"id": self.name, "object": "model", "created": 0, "owned_by": "transformers"}]


class Chat(ChatCompletionHandler):
    """transformers' handler, which samples where it is asked to, and writes no more than the model reads."""

    def __init__(self, models: OneModel, state: GenerationState):
        super().__init__(models, state)
        self.longest = models.engine.model.config.text_config.max_position_embeddings

    def _build_generation_config(self, body: dict, model_generation_config: Any, use_cb: bool = False) -> Any:
        config = super()._build_generation_config(body, model_generation_config, use_cb)
        given = body.get("max_completion_tokens") or body.get("max_tokens")
        if given and given > self.longest:
            raise of_request(LlavaError(f"max_tokens is {given}, but the model reads at most {self.longest}"))
        config.do_sample = bool(body.get("temperature"))
        if config.do_sample:
            config.top_k = 0  # else transformers' default of 50, which nobody asked for
        return config

    def _streaming(
        self, request_id: str, model: Any, processor: Any, name: str, inputs: Any, gen_config: Any, **more: Any
    ) -> Any:
        self._keep_within(inputs, gen_config)
        return super()._streaming(request_id, model, processor, name, inputs, gen_config, **more)

    async def _non_streaming(
        self, request_id: str, model: Any, processor: Any, name: str, inputs: Any, gen_config: Any, **more: Any
    ) -> Any:
        self._keep_within(inputs, gen_config)
        return await super()._non_streaming(request_id, model, processor, name, inputs, gen_config, **more)

    def _keep_within(self, inputs: Any, gen_config: Any) -> None:
        """Ends an answer, with finish_reason `length`, where prompt and answer are as long as the model reads."""
        prompt = inputs["input_ids"].shape[-1]
        if prompt >= self.longest:
            reads = f"the model reads at most {self.longest}, with its answer"
            raise of_request(LlavaError(f"the prompt has {prompt} tokens, but {reads}"))
        gen_config.max_new_tokens = min(gen_config.max_new_tokens, self.longest - prompt)


def server_app(engine: Engine, service: Service) -> CheckedRequests:
    """The ASGI application."""
    models, state = OneModel(service.model, engine), GenerationState()
    app = build_server(
        models,
        Chat(models, state),
        completion_handler=None,  # and so on: CheckedRequests lets nothing through to them
        response_handler=None,
        transcription_handler=None,
        systemone_handler=None,
        generation_state=state,
    )
    return CheckedRequests(app, service)


def serve(engine: Engine, service: Service, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM."""
    uvicorn.run(server_app(engine, service), host=host, port=port, log_level="warning")
