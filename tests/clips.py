"""Small videos, encoded on the spot."""

from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, frames=40, fps: int = 8, size: tuple[int, int] = (64, 48), **options) -> Path:
    """Writes an h264 video and returns its path.

    frames: uint8 arrays (H, W, 3), or the number of grey frames of level 20 + 5 * index. size: (width, height).
    """
    width, height = size
    if isinstance(frames, int):
        frames = [np.full((height, width, 3), 20 + 5 * index, np.uint8) for index in range(frames)]
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("h264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path
