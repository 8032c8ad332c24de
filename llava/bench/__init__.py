"""Benches: many small trainings under equal conditions, one table."""
