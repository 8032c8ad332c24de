"""The two-tower models. Importing modeling makes transformers' Auto classes know `manager_tower`."""
