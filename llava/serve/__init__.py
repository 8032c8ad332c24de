"""`llava serve`: an OpenAI-compatible server, vLLM or transformers', behind one check of what comes in."""
