"""Small videos, encoded on the spot."""

import struct
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


def write_timed(path: Path, times: list[int]) -> Path:
    """Writes a video of a variable rate, grey frames of level 20 + 5 * index, and returns its path. times: ms."""
    with av.open(path, "w") as container:
        stream = container.add_stream("h264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 5 * index, np.uint8), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, degrees: int) -> None:
    """Says in an MP4's track header that it is to be shown turned by so much, clockwise, as phones write it."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    sine, cosine = {90: (1, 0), 180: (0, -1), 270: (-1, 0)}[degrees]
    one = 1 << 16
    content[at : at + 36] = struct.pack(">9i", cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
