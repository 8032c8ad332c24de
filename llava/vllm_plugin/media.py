"""Pictures of vLLM's requests, read by this package: its formats, its rule of colors, its choice of a video's frames.

Chosen by the environment: VLLM_MEDIA_CONNECTOR=llava_ov_manager.
"""

import asyncio
import base64
import binascii
import tempfile
from io import BytesIO
from typing import Any

import numpy as np
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaWithBytes
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.connector import global_thread_pool

from llava.data.images import open_image
from llava.data.video import EVERY_SECOND, read_video
from llava.errors import DataError
from llava.vllm_plugin.entry import MODE


class _Images(MediaIO):
    def load_bytes(self, data: bytes) -> MediaWithBytes:
        return MediaWithBytes(open_image(BytesIO(data), "of the request"), data)

    def load_base64(self, media_type: str, data: str) -> MediaWithBytes:
        return self.load_bytes(_decoded(data))

    def load_file(self, filepath: Any) -> MediaWithBytes:
        return self.load_bytes(filepath.read_bytes())


class _Videos(_Images):
    def load_bytes(self, data: bytes) -> MediaWithBytes:
        with tempfile.NamedTemporaryFile(prefix="llava-video-") as file:
            file.write(data)
            file.flush()
            try:
                frames = read_video(file.name, EVERY_SECOND).frames
            except DataError as error:
                raise DataError(str(error).replace(file.name, "of the request")) from None
        return MediaWithBytes((np.stack([np.asarray(frame) for frame in frames]), {}), data)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"a picture of the request is not whole base64: {error}") from None


@MEDIA_CONNECTOR_REGISTRY.register(MODE)
class Pictures(MediaConnector):
    """vLLM's own, but for how what came is read."""

    def fetch_image(self, image_url: str, **options: Any) -> Any:
        """An RGB image."""
        return self.load_from_url(image_url, _Images())

    async def fetch_image_async(self, image_url: str, **options: Any) -> Any:
        """An RGB image."""
        return await asyncio.get_running_loop().run_in_executor(global_thread_pool, self.fetch_image, image_url)

    def fetch_video(self, video_url: str, **options: Any) -> Any:
        """Frames, (frames, height, width, 3)."""
        return self.load_from_url(video_url, _Videos())

    async def fetch_video_async(self, video_url: str, **options: Any) -> Any:
        """Frames, (frames, height, width, 3)."""
        return await asyncio.get_running_loop().run_in_executor(global_thread_pool, self.fetch_video, video_url)
