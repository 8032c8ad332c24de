"""The base of every error that a user can cause and mend."""


class LlavaError(ValueError):
    """Wrong input. The message is one line that names the file or sample and both numbers; the CLI prints it alone."""


class DataError(LlavaError):
    """A record, an image or a mixture that cannot be used as it stands."""


class MissingFileError(DataError):
    """An image or video that does not exist."""


class OversizedImageError(DataError):
    """An image of so many pixels that decoding it could exhaust the memory (a decompression bomb)."""


class PlaceholderError(DataError):
    """A conversation with more or less places for images or videos than there are, or with one where none can stand."""


class TemplateError(DataError):
    """Turns that a prompt template does not take."""


class NoAnswerError(DataError):
    """A conversation of which nothing would be learned."""
