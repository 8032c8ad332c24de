"""The base of every error that a user can cause and mend."""

from collections.abc import Sequence


class LlavaError(ValueError):
    """Wrong input. The message is one line that names the file or sample and both numbers; the CLI prints it alone."""


class DataError(LlavaError):
    """A record, an image or a mixture that cannot be used as it stands."""


class MissingFileError(DataError):
    """An image or video that does not exist."""


class OutsideError(DataError):
    """A path that leads out of the image folder and may not."""


class PassingReadError(DataError):
    """A file that could not be read for a reason that may pass, as network disks have them; see `patiently`."""


class OversizedImageError(DataError):
    """An image of so many pixels that decoding it could exhaust the memory (a decompression bomb)."""


class PlaceholderError(DataError):
    """A conversation with more or less places for images or videos than there are, or with one where none can stand."""


class TemplateError(DataError):
    """Turns that a prompt template does not take."""


class NoAnswerError(DataError):
    """A conversation of which nothing would be learned."""


def raise_faults(origin: str, faults: Sequence[str]) -> None:
    """Raises one LlavaError that lists `faults`, if there are any. origin: what they are of, for the first line."""
    if len(faults) == 1:
        raise LlavaError(faults[0])
    if faults:
        raise LlavaError(f"{origin} has {len(faults)} faults:" + "".join(f"\n  - {fault}" for fault in faults))
