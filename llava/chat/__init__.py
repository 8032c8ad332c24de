"""Generation: one engine for chat and evaluation, and the chat command."""
