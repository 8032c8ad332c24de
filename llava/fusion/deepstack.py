"""DeepStack (arXiv 2406.04334, section 3.1): the sequence has one crop of an image, its tiles are added layer by layer.

    F = the tiles side by side, projected, R x C times a crop's size
    h <- h + F[i::R, j::C]       before layer start + n * interval of the language model, at the image's visual tokens;
                                 n = i * C + j

So a token receives the R * C patches of the tiles that show what it shows, each in a layer of its own. For that the
tiles and the crop must show the same: the paper's code stretches an image to its tiles, the tiles here keep the aspect
ratio and are padded. So F loses its padding, and is resized (bilinear) to a whole number of crops: to R x C, or for a
grid of more than `max_stacks` to the most that fit (see stack_grid), where the released code drops stacks for which no
layer is left. A newline, images of one crop and videos receive nothing.

Shapes: C crops, T tokens per crop, D width of the language model.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from llava.anyres import ImageLayout, VideoLayout
from llava.fusion.base import Context, Crops, Fusion, FusionCost, SelfInitialised
from llava.fusion.config import Sizes
from llava.fusion.configs.deepstack import DeepstackConfig
from llava.fusion.tile_map import joined, resized


def stack_grid(columns: int, rows: int, most: int) -> tuple[int, int]:
    """(columns, rows) of an image's stacks: its tiles', or where they are more than `most`, the most that fit into it.

    Of as many, the nearest in shape; on no side more than the tiles.
    """

    def rank(grid: tuple[int, int]) -> tuple[int, float]:
        return grid[0] * grid[1], -abs(math.log(grid[0] * rows / (grid[1] * columns)))

    grids = [(wide, high) for wide in range(1, columns + 1) for high in range(1, rows + 1) if wide * high <= most]
    return max(grids, key=rank)


def sampled_stacks(tiles_CTD: torch.Tensor, layout: ImageLayout, most: int) -> list[torch.Tensor]:
    """The stacks of an image, (T, D) each; none where no patch of the tiles shows it."""
    map_HWD = joined(tiles_CTD, layout)
    if not map_HWD.shape[0] * map_HWD.shape[1]:
        return []
    side = round(tiles_CTD.shape[1] ** 0.5)
    columns, rows = stack_grid(*layout.grid, most)
    if map_HWD.shape[:2] != (rows * side, columns * side):
        map_HWD = resized(map_HWD, rows * side, columns * side)
    by_offset = map_HWD.unflatten(1, (side, columns)).unflatten(0, (side, rows)).permute(1, 3, 0, 2, 4)
    return list(by_offset.flatten(0, 1).flatten(1, 2))


class StackGates(SelfInitialised):
    """A vector for each stack, by which its tokens are multiplied."""

    def __init__(self, num_stacks: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_stacks, width))

    def initialise(self) -> None:
        """Zero: the model begins as the one that sees one crop."""
        init.zeros_(self.weight)

    def forward(self, *stacks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(V, D) each to the same."""
        return tuple(stack * gate for stack, gate in zip(stacks, self.weight, strict=True))


class Deepstack(Fusion[DeepstackConfig, int]):
    """The stacks of every image, by the layer that they are added before; without weights unless gated."""

    def __init__(self, config: DeepstackConfig, sizes: Sizes):
        super().__init__(config, sizes)
        self.injection_layers = config.injection_layers
        self.gates = (
            StackGates(len(self.injection_layers), sizes.text_width) if config.initialisation == "zero" else None
        )

    @classmethod
    def cost(cls, config: DeepstackConfig, sizes: Sizes) -> FusionCost:
        """No product with a matrix; gates keep what they multiply, no more than each tile has."""
        kept = sizes.crop_tokens * sizes.text_width if config.initialisation == "zero" else 0
        return FusionCost(kept=kept, first_layer=config.start)

    @property
    def packed_keys(self) -> tuple[int, ...]:
        """The layers of the language model that are added before."""
        return self.injection_layers

    def to_pack(self, crops: Crops) -> dict[int, list[torch.Tensor]]:
        """Of each image a stack for every layer, zeros where it has none."""
        of_images = [
            self._stacks(visual_CTD, layout)
            for visual_CTD, layout in zip(crops.visual.split([one.num_crops for one in crops.layouts]), crops.layouts)
        ]
        return {layer: [stacks[number] for stacks in of_images] for number, layer in enumerate(self.packed_keys)}

    def _stacks(self, visual_CTD: torch.Tensor, layout: ImageLayout | VideoLayout) -> Sequence[torch.Tensor]:
        """(tokens, D) for each layer."""
        nothing = visual_CTD.new_zeros(layout.num_tokens, visual_CTD.shape[-1])
        stacks = []
        if isinstance(layout, ImageLayout) and layout.num_crops > 1:
            stacks = sampled_stacks(visual_CTD[1:], layout, len(self.packed_keys))
            newlines = nothing[layout.base_tokens :]
            stacks = [torch.cat([stack, newlines]) for stack in stacks] if len(newlines) else stacks
        return stacks + [nothing] * (len(self.packed_keys) - len(stacks))

    def deltas(self, packed: dict[int, torch.Tensor], context: Context) -> dict[int, torch.Tensor]:
        """What was packed, as it is or gated."""
        if self.gates is None:
            return packed
        return dict(zip(packed, self.gates(*packed.values()), strict=True))
