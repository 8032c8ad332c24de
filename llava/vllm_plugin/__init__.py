"""The models of llava/mllm in vLLM, which runs in an environment of its own; see docs/serve.md.

vLLM calls `entry.register` in each of its processes; the other files import vLLM, and are imported by it.
"""
