"""Training in three stages: recipes, what trains at which rate, the trainer, and the checkpoint a stage ends in."""
