"""The folder that holds a model: loading it."""
