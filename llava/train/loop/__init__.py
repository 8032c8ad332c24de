"""The training loop: the Trainer and what it calls in every step."""
