"""Generation for chat, evaluation and training."""
