"""What a run leaves on disk: stage folders, interim checkpoints, the manifest."""
