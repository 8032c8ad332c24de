"""Pieces of the model on several devices, which are only pretended: fake tensors know theirs and hold no numbers.

An operation on tensors of two devices fails as it would on GPUs. accelerate's hooks move what a module is called with,
and nothing else, so that everything that is computed between modules is at stake.
"""

import multiprocessing
import traceback
from unittest import mock

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import llava.mllm.guidance
from llava.anyres import image_layout
from llava.fusion.base import Questions
from llava.fusion.configs.cli_reconstruction import CliReconstructionConfig
from llava.fusion.configs.cross_attention import CrossAttentionConfig
from llava.fusion.configs.deepstack_qwen3 import DeepstackQwen3Config
from llava.fusion.configs.igva import IgvaConfig
from llava.fusion.configs.layer_select import LayerSelectConfig
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.tgif import TgifConfig
from llava.fusion.methods import METHODS
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.mllm.visual_input import VisualInput
from tests.fusion.test_methods import CASES, tiling_of

# Each part on another device than those that it works with.
DEVICES = {
    "model.vision_tower.": 0,
    "model.multi_modal_projector.linear_1": 1,
    "model.multi_modal_projector.linear_2": 2,
    "model.image_newline": 3,
    "model.fusion": 4,
    "model.language_model.embed_tokens": 5,
    "model.language_model.rotary_emb": 6,
    "model.language_model.layers.0.": 7,
    "model.language_model.layers.1.": 6,
    "model.language_model.layers.": 5,
    "model.language_model.norm": 4,
    "lm_head": 3,
}
INPUTS = "pretended:2"
FUSIONS = {
    "static": ManagerConfig(interval=2, scope="grid"),
    "adaptive": ManagerConfig(interval=2, query="cross"),
    "deepstack": DeepstackQwen3Config(vision_layers=(1, 2, 3), injection_layers=(0, 1, 2)),
    "layer_select": LayerSelectConfig(),
    "cross_attention": CrossAttentionConfig(),
    "cli_reconstruction": CliReconstructionConfig(),
    "guided": TgifConfig(initialisation="zero"),
    "guided by attention": IgvaConfig(heads=2, head_width=4, blocks=1),
}
SEEN = {fusion.method for fusion in FUSIONS.values()}
OTHERS = {name: case for name, case in CASES.items() if case.config.method not in SEEN}


class Indices(TorchFunctionMode):
    """Fails for an index on another device, which fake tensors let pass."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor):
            assert args[0].device == args[1].device
        return func(*args, **(kwargs or {}))


def spread(model: nn.Module) -> None:
    """Puts every piece on its device, and hooks every module with tensors of its own, as accelerate does."""
    for name, module in model.named_modules():
        device = next((number for prefix, number in DEVICES.items() if f"{name}.".startswith(prefix)), None)
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=f"pretended:{device}")
                    tensors[key] = nn.Parameter(moved) if tensors is module._parameters else moved
        if device is not None and any(True for _ in module.parameters()):
            add_hook_to_module(module, AlignDevicesHook(f"pretended:{device}", skip_keys="past_key_values"))


def run(config: LlavaOVManagerConfig) -> None:
    """Features of two images and a pass over a prompt; raises where two devices meet."""
    layouts = [
        image_layout(*size, config.tiling, tile=56, side=config.patches_per_side, several_images=False)
        for size in ((100, 70), (56, 56))
    ]
    crops, tokens = (sum(getattr(layout, key) for layout in layouts) for key in ("num_crops", "num_tokens"))
    with torch.device("meta"):
        model = LlavaOVManagerForConditionalGeneration(config).eval()
    with FakeTensorMode(), Indices(), torch.no_grad():
        spread(model)
        given = VisualInput(torch.empty(crops, 3, 56, 56, device=INPUTS), layouts, [0, 0])
        means = torch.empty(2, config.text_config.hidden_size, device=INPUTS)
        guidance = Questions(means, torch.ones(2, dtype=torch.bool, device=INPUTS))
        features = model.model.get_visual_features(given, guidance if config.fusion.guided else None)
        input_ids = torch.zeros(1, tokens + 9, dtype=torch.int64, device=INPUTS)
        positions = torch.arange(tokens, device=INPUTS) + 3
        questions = [torch.arange(4, device=INPUTS)] * 2
        with (  # they read the numbers
            mock.patch.object(llava.mllm.guidance, "placeholder_positions", return_value=positions),
            mock.patch.object(llava.mllm.guidance, "questions_of_batch", return_value=questions),
            mock.patch.object(llava.mllm.guidance, "sequences_of_batch", return_value=None),
        ):
            output = model(input_ids=input_ids, mm_encoder_outputs={"image": features}, use_cache=False)
    assert output.logits.shape == (1, tokens + 9, config.text_config.vocab_size)
    assert output.logits.device == torch.device("pretended:3")


def run_all(configs: dict, pipe) -> None:
    _setup_privateuseone_for_python_backend("pretended")
    for name, config in configs.items():
        try:
            run(config)
        except Exception:
            pipe.send(f"{name}:\n{traceback.format_exc()}")
            break
    pipe.send(None)


def test_nothing_is_computed_of_two_devices(make_config):
    """In a process of its own: there is no way back from a kind of device that torch has been told of."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    configs = {name: make_config(fusion=fusion) for name, fusion in FUSIONS.items()}
    configs |= {f"twin {name}": make_config(tiling_of(case), case.config) for name, case in OTHERS.items()}
    assert {config.fusion.method for config in configs.values()} == METHODS.keys()
    process = context.Process(target=run_all, args=(configs, sender))
    process.start()
    sender.close()
    fault = receiver.recv()
    process.join()
    assert fault is None, fault
