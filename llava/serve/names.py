"""Names of what answers, and what is known of it."""

AUTO = "auto"
VLLM, TRANSFORMERS = ENGINES = ("vllm", "transformers")
# Requests that it is given at the same time. transformers answers one, while another's pixels wait in memory.
AT_ONCE = {VLLM: 256, TRANSFORMERS: 2}
