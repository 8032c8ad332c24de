"""How sizes in bytes and durations are written: 1.79 GB, 104.9 MB, 512 bytes; 38.5 hours, 12.0 seconds."""

UNITS = {"GB": 10**9, "MB": 10**6, "KB": 10**3}
TIMES = {"hours": 3600, "minutes": 60}


def unit_of(size: float) -> str:
    """The largest unit of which `size` bytes are at least one; KB for fewer."""
    return next((unit for unit, scale in UNITS.items() if size >= scale), "KB")


def in_bytes(size: float) -> str:
    """`size` bytes in a unit in which they are not 0, with one or two decimals."""
    if size < UNITS["KB"]:
        return f"{size:.0f} bytes"
    number = size / UNITS[unit_of(size)]
    return f"{number:,.{2 if number < 9.995 else 1}f} {unit_of(size)}"


def duration(seconds: float) -> str:
    """`seconds` in the largest unit of which they are at least one."""
    unit = next((unit for unit, length in TIMES.items() if seconds >= length), "seconds")
    return f"{seconds / TIMES.get(unit, 1):,.1f} {unit}"
