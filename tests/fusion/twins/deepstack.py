"""deepstack from its equation: h <- h + F[i::R, j::C] before layer start + n * interval, F an image's tiles."""

from llava.anyres import image_layout
from llava.fusion.configs.deepstack import DeepstackConfig
from llava.fusion.deepstack import stack_grid
from tests.fusion.twins.twin import Case, Shown, Twin
from tests.mllm.slow_model import shrink


class DeepstackTwin(Twin):
    """One patch at a time: tiles side by side, padding cut off, as many columns and rows as whole crops have."""

    def before(self, layer, hidden, shown):
        """The layer's stack, where an image has one."""
        hidden = hidden.clone()
        for one in shown:
            stacks = self.stacks(one) if one.size is not None and len(one.states[-1]) > 1 else []
            for number, stack in enumerate(stacks):
                if layer == self.config.start + number * self.config.interval:
                    gate = 1 if self.fusion.gates is None else self.fusion.gates.weight[number]
                    for token, features in enumerate(stack):
                        hidden[one.places[token]] += gate * features
        return hidden

    def stacks(self, one: Shown) -> list[list]:
        """Of one image, each the features of a crop's tokens."""
        config, tiles = self.model.config, self.project(one.states[-1][1:])
        side, tile = config.patches_per_side, config.vision_config.image_size
        layout = image_layout(*one.size, config.tiling, tile=tile, side=side, several_images=False)
        (columns, rows), (top, left, height, width) = layout.grid, layout.window
        picture = [
            [tiles[y // side * columns + x // side][y % side * side + x % side] for x in range(columns * side)]
            for y in range(rows * side)
        ]
        picture = [row[left : left + width] for row in picture[top : top + height]]
        columns, rows = stack_grid(columns, rows, self.config.max_stacks)
        picture = shrink(picture, rows * side, columns * side)
        return [
            [picture[y * rows + i][x * columns + j] for y in range(side) for x in range(side)]
            for i in range(rows)
            for j in range(columns)
        ]


GATED = DeepstackConfig(initialisation="zero")
CASES = {"deepstack": Case(DeepstackConfig(), DeepstackTwin), "deepstack gated": Case(GATED, DeepstackTwin)}
