"""How the model of a run cuts images into tiles, and where the cuts lie in a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from llava.anyres import TilingConfig
from llava.checkpoint.folder import IMAGE_PROCESSOR_CONFIG, PROCESSOR_CONFIG
from llava.text_files import read_json

if TYPE_CHECKING:  # it imports Pillow
    from llava.data.tile_lines import Cuts


def stored_tiling(model: Path) -> dict | None:
    """What a run stores of its model's tiling: TilingConfig's fields and `tile`; None where the folder tells none."""
    configs = [
        read_json(model / name) for name in (PROCESSOR_CONFIG, IMAGE_PROCESSOR_CONFIG) if (model / name).is_file()
    ]
    for config in configs:  # which of the two has it depends on the version of transformers that saved the model
        pictures = config.get("image_processor", config)
        if isinstance(pictures, dict) and {"size", "tiling"} <= pictures.keys():
            return {**pictures["tiling"], "tile": pictures["size"]}
    return None


def cuts(stored: dict, size: tuple[int, int], several_images: bool) -> "Cuts":
    """Where an image of (width, height) pixels is cut; nowhere where it becomes one crop."""
    from llava.data.tile_lines import tile_cuts

    tiling = TilingConfig(**{key: value for key, value in stored.items() if key != "tile"})
    return tile_cuts(tiling, stored["tile"], size, several_images)
