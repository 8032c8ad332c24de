"""How the model of a run cuts images into tiles, and where the cuts lie in a picture."""

from pathlib import Path

from llava.checkpoint.folder import IMAGE_PROCESSOR_CONFIG, PROCESSOR_CONFIG, read_json

Cuts = tuple[tuple[float, ...], tuple[float, ...]]  # x of those that are upright, y of those that lie; in pixels


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


def cuts(stored: dict, size: tuple[int, int], several_images: bool) -> Cuts:
    """Where an image of (width, height) pixels is cut; nowhere where it becomes one crop."""
    from llava.anyres import TilingConfig, best_resolution, fit_inside  # imports numpy

    tiling, tile = TilingConfig(**{key: value for key, value in stored.items() if key != "tile"}), stored["tile"]
    if tiling.mode != "anyres" or several_images:
        return (), ()
    canvas = best_resolution(size, tiling.pinpoints)
    width, height, left, top = fit_inside(size, canvas)
    return _inside(canvas[0], tile, left, width, size[0]), _inside(canvas[1], tile, top, height, size[1])


def _inside(canvas: int, tile: int, margin: int, fitted: int, length: int) -> tuple[float, ...]:
    """Of one axis: the tiles' edges on the canvas, in pixels of the image, as far as they lie in it."""
    edges = [(edge - margin) * length / fitted for edge in range(tile, canvas, tile)]
    return tuple(edge for edge in edges if 0 < edge < length)
