"""Judges: models that rate answers. A client, what is asked, the reviews that came, and `llava eval judge`."""
