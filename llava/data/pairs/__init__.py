"""Pairs of images and texts: from arrow, parquet and JSON files to the two-tower models' batches."""
