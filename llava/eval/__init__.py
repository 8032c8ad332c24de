"""Evaluation: the lmms-eval plugin, the tasks that ship with the package, and the table of results."""
