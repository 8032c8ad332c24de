"""The lmms-eval plugin: entry point group `lmms_eval.models`, model name `llava_ov_manager`.

lmms-eval loads every entry point whenever it lists its models, so nothing heavy is imported here; the model itself is
llava/eval/lmms_model.py.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODEL_ID = "llava_ov_manager"


def manifest() -> "ModelManifest":
    """The harness's `ModelManifest` that says where the chat and the simple model live."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id=MODEL_ID,
        chat_class_path="llava.eval.lmms_model.LlavaOVManager",
        simple_class_path="llava.eval.lmms_model.SimpleLlavaOVManager",
    )
