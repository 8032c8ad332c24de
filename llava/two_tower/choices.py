"""What can be chosen of the bridges between two towers; the model's configuration and the recipes read it. No torch."""

from typing import Literal

Bridge = Literal["manager", "bridge_tower", "meter"]
ManagerKind = Literal["sam", "sam_split", "saum", "aaum", "concat_attention", "cross_attention"]
Query = Literal["own", "fused"]
Weight = Literal["scalar", "vector"]
