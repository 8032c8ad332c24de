"""The conversation in a browser: `llava demo-page`."""
