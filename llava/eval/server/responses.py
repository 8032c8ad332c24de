"""What servers say: of requests that are worth repeating, and in errors."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from llava.eval.server.settings import NO_KEY

PASSING = (408, 409, 429)  # worth repeating, like every 5xx


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None without a readable one."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def without_key(text: str, key: str) -> str:
    """A server's words with stars where they repeat the key."""
    return text if key == NO_KEY else text.replace(key, "***")


def in_one_line(text: str, key: str, most: int) -> str:
    """A server's words in one line of at most so many characters, without the key."""
    line = " ".join(without_key(text, key).split())
    return line if len(line) <= most else line[:most] + "..."
