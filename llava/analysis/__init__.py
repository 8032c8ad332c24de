"""What happens inside a model: the paper's analyses, in one pass over chosen data."""
