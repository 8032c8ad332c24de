"""`llava eval --engine`: models behind an OpenAI-compatible server, asked what the model in this process is asked."""
