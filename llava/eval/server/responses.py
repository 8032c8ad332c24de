"""What servers say of requests that are worth repeating."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

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
