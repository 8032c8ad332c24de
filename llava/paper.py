"""Every number that the paper (arXiv 2506.11515) states of a run, once: its tables, and what its text says of figures.

A table is {run: {benchmark: value}}. Figures without a number in their text are not here: nothing is read off a curve.
Imports nothing, so that the report of `llava eval`, the bench and the documentation's tests all read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Rows = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PaperTable:
    """title: what it compares. columns: benchmarks and costs. rows: {run: {column: value}}; a run may lack some.

    notes: {run: what the paper says beside it}. Runs and columns are in the paper's order.
    """

    title: str
    columns: tuple[str, ...]
    rows: Rows
    notes: Mapping[str, str] = field(default_factory=dict)


def _table(
    title: str,
    columns: tuple[str, ...],
    values: Mapping[str, tuple[float | None, ...]],
    notes: Mapping[str, str] | None = None,
) -> PaperTable:
    """A table of rows without the values that are None."""
    rows = {
        run: {name: value for name, value in zip(columns, of_run, strict=True) if value is not None}
        for run, of_run in values.items()
    }
    return PaperTable(title, columns, rows, notes or {})


ARMS = {  # as Table IV calls them
    "baseline": "Baseline",
    "manager": "+ Manager",
    "grid": "+ Grid",
    "grid_manager": "+ Grid + Manager",
}

# VQAv2 test-dev, and the mean recall of Flickr30K's retrieval.
TABLE_I = _table(
    "Types of managers and of their queries; ManagerTower without pre-training",
    ("VQAv2 test-dev", "Flickr30K R_MEAN"),
    {
        "BridgeTower": (75.91, 93.33),
        "SAM, N x 1": (76.19, 93.57),
        "SAM, N x D": (76.18, 93.73),
        "SAUM, N x 1": (76.38, 93.75),
        "SAUM, N x D": (76.55, 93.82),
        "AAUM, own query": (76.52, 93.84),
        "AAUM, fused query": (76.65, 93.97),
        "Concat-Attention, own query": (76.38, 93.78),
        "Concat-Attention, fused query": (76.43, 93.83),
        "Cross-Attention, own query": (76.41, 92.15),
        "Cross-Attention, fused query": (76.45, 92.61),
    },
)

CROSS_MODAL_LAYERS = (2, 3, 4, 6, 8)  # L_C of Table II

TABLE_II = _table(
    "Numbers of cross-modal layers, without pre-training",
    ("VQAv2 test-dev", "Flickr30K R_MEAN"),
    {
        "BridgeTower, L_C 2": (74.86, 92.45),
        "ManagerTower, L_C 2": (75.47, 93.31),
        "BridgeTower, L_C 3": (75.33, 92.50),
        "ManagerTower, L_C 3": (76.04, 93.41),
        "BridgeTower, L_C 4": (75.74, 92.76),
        "ManagerTower, L_C 4": (76.26, 93.59),
        "BridgeTower, L_C 6": (75.91, 93.33),
        "ManagerTower, L_C 6": (76.65, 93.97),
        "BridgeTower, L_C 8": (75.89, 93.03),
        "ManagerTower, L_C 8": (76.47, 93.65),
    },
)

VG_QA = "also trained on VG-QA for VQAv2"

# Images of pre-training are in millions.
TABLE_III = _table(
    "Four tasks after vision-language pre-training",
    (
        "M images",
        *("VQAv2 test-dev", "VQAv2 test-std", "SNLI-VE dev", "SNLI-VE test", "NLVR2 dev", "NLVR2 test-P"),
        *("Flickr30K IR@1", "Flickr30K TR@1"),
    ),
    {
        "ViLT, base": (4, 71.26, None, None, None, 75.70, 76.13, 64.4, 83.5),
        "UNITER, base": (4, 72.70, 72.91, 78.59, 78.28, 77.18, 77.85, 72.52, 85.90),
        "UNIMO, base": (4, 73.79, 74.02, 80.00, 79.10, None, None, 74.66, 89.70),
        "ALBEF, base": (4, 74.54, 74.70, 80.14, 80.30, 80.24, 80.50, 82.8, 94.3),
        "METER-Swin, base": (4, 76.43, 76.42, 80.61, 80.45, 82.23, 82.47, 79.02, 92.40),
        "VLMo, base": (4, 76.64, 76.89, None, None, 82.77, 83.34, 79.3, 92.3),
        "METER-CLIP, base": (4, 77.68, 77.64, 80.86, 81.19, 82.33, 83.05, 82.22, 94.30),
        "BridgeTower, base": (4, 78.66, 78.73, 81.11, 81.19, 81.85, 83.09, 85.83, 94.73),
        "ManagerTower, base": (4, 79.39, 79.15, 81.26, 81.44, 82.81, 83.34, 86.56, 95.64),
        "UNITER, large": (4, 73.82, 74.02, 79.39, 79.38, 79.12, 79.98, 75.56, 87.30),
        "UNIMO, large": (4, 75.06, 75.27, 81.11, 80.63, None, None, 78.04, 89.40),
        "ALBEF, base, 14M": (14, 75.84, 76.04, 80.80, 80.91, 82.55, 83.14, 85.6, 95.9),
        "SimVLM, base, 1.8B": (1800, 77.87, 78.14, 84.20, 84.15, 81.72, 81.77, None, None),
        "BLIP, base, 129M": (129, 78.24, 78.17, None, None, 82.48, 83.08, 87.3, 97.3),
        "SimVLM, large, 1.8B": (1800, 79.32, 79.56, 85.68, 85.62, 84.13, 84.84, None, None),
    },
    {run: VG_QA for run in ("UNITER, base", "ALBEF, base", "UNITER, large", "ALBEF, base, 14M", "BLIP, base, 129M")},
)

PARAMETERS, TRAINING_MS, INFERENCE_MS, OVERALL = "M parameters", "training ms", "inference ms", "mean of 20"

# Milliseconds a sample: training on two servers of 8 A100 each, inference on one A100, over VQAv2's validation set.
TABLE_IV = _table(
    "Computational budget of the four arms, and the mean of 20 benchmarks",
    (PARAMETERS, TRAINING_MS, INFERENCE_MS, OVERALL),
    {
        "baseline": (893.62, 11.84, 13.97, 50.61),
        "manager": (893.70, 12.22, 14.54, 51.67),
        "grid": (893.62, 51.95, 23.47, 53.87),
        "grid_manager": (893.70, 54.17, 24.45, 55.21),
    },
)

# What section V-D2 says of Figure 11: a quarter of the data, nine benchmarks that the paper does not name.
FIGURE_11 = _table(
    "Injection times of the arm `manager`; mean of nine benchmarks after a quarter of the data",
    ("mean of 9",),
    {"6 times": (50.96,), "24 times": (51.08,)},
    {"24 times": "training and inference cost about 7% more than with 6"},
)

# Sections IV-A and V-B1, in millions of parameters.
SIZES = _table(
    "Parameters of the parts",
    (PARAMETERS,),
    {
        "RoBERTa, base": (124.0,),
        "CLIP ViT-B/16": (86.0,),
        "cross-modal encoder": (113.0,),
        "its managers": (12.0,),
        "SigLIP so400m": (400.0,),
        "Qwen2-0.5B": (500.0,),
        "projector of LLaVA-OV": (1.8,),
        "managers of LLaVA-OV-Manager": (0.08,),
    },
)

TABLES = {
    "I": TABLE_I,
    "II": TABLE_II,
    "III": TABLE_III,
    "IV": TABLE_IV,
    "figure 11": FIGURE_11,
    "sizes": SIZES,
}

OVERALL_BY_ARM = {arm: row[OVERALL] for arm, row in TABLE_IV.rows.items()}
