"""sti from its equation: x = P([V_L ; pool(V_a) ; pool(V_b)]) along tokens, in the released code's raster order."""

import torch

from llava.fusion.configs.sti import StiConfig
from tests.fusion.twins.twin import Case, Twin

NO_TILES = "adds tokens to a crop has no place on a map of tiles: tiling mode anyres"
NO_VIDEOS = "adds tokens to a crop takes no videos, whose frames are pooled"


class StiTwin(Twin):
    """Of states 1 and 2 of a tower of 4 layers, which are the 8th and the 16th of 26; 5 of 16 tokens are a pool."""

    def visual_input(self, states, question):
        """A mean of 5 tokens for each pool; the last of 16 tokens is in none."""
        tokens, pools = list(states[4]), len(states[4]) // 5
        for layer in (1, 2):
            for first in range(0, 5 * pools, 5):
                tokens.append(sum(states[layer][first + number] for number in range(5)) / 5)
        return torch.stack(tokens)


CASES = {
    "sti": Case(
        StiConfig(pool=5), StiTwin, refused={**dict.fromkeys(("max_9", "anyres", "flat"), NO_TILES), "video": NO_VIDEOS}
    )
}
