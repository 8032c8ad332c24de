"""mmfuser from its equations, one sample of one head at a time.

a = DeformAttn(LN V_4, LN [V_1, V_3]); a <- a + g2 * DeformAttn(LN a, LN a); x = P(V_4 + g1 * a).
"""

import torch

from llava.fusion.configs.mmfuser import MmfuserConfig
from tests.fusion.twins.twin import Case, Twin, layer_norm, linear


class MmfuserTwin(Twin):
    """Of states 1 and 3."""

    def visual_input(self, states, question):
        """The visual input and what it is answered."""
        fusion = self.fusion
        asked = [layer_norm(fusion.state_norm, states[layer]) for layer in (1, 3)]
        answer = self.attended(fusion.cross_attention, layer_norm(fusion.query_norm, states[4]), asked)
        normed = layer_norm(fusion.norm, answer)
        answer = answer + fusion.gate_2.weight * self.attended(fusion.self_attention, normed, [normed])
        return states[4] + fusion.gate_1.weight * answer

    def attended(self, attention, queries, maps):
        """DeformAttn of T tokens (T, D) to maps of the same size."""
        heads, points, side = self.config.heads, self.config.points, int(len(queries) ** 0.5)
        values = [linear(attention.value, one).unflatten(-1, (heads, -1)) for one in maps]
        offsets = linear(attention.offsets, queries).unflatten(-1, (heads, len(maps), points, 2))
        scores = linear(attention.weights, queries).unflatten(-1, (heads, len(maps) * points))
        found = []
        for token in range(len(queries)):
            row, column = divmod(token, side)
            of_heads = []
            for head in range(heads):
                weights, total = scores[token, head].softmax(-1), 0
                for level, value in enumerate(values):
                    for point in range(points):
                        x, y = offsets[token, head, level, point]
                        sample = bilinear(value[:, head].unflatten(0, (side, side)), row + y, column + x)
                        total = total + weights[level * points + point] * sample
                of_heads.append(total)
            found.append(torch.cat(of_heads))
        return linear(attention.output, torch.stack(found))


def bilinear(grid, y, x):
    """The value at (y, x) of a (side, side, d) grid with zeros around it; tokens are whole numbers."""
    total, top, left = torch.zeros_like(grid[0, 0]), int(y.floor()), int(x.floor())
    for row, share in ((top, top + 1 - y), (top + 1, y - top)):
        for column, part in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < len(grid) and 0 <= column < len(grid):
                total = total + share * part * grid[row, column]
    return total


SMALL = MmfuserConfig(vision_layers=(1, 3), heads=2, points=2)
# 16 tokens of 32 channels find 2 points in each of 3 maps, a point between 4 tokens, and add it up: 5 products each.
SUMS = {"crop": (30720, 3 * 30720, 30720, 3 * 30720, 3 * 30720, 30720, 3 * 30720)}
CASES = {"mmfuser": Case(SMALL, MmfuserTwin, neutral=SMALL, sums=SUMS)}
