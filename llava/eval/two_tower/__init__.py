"""Evaluation of two-tower models: questions, sentences, statements and retrieval, stored as lmms-eval's tasks are."""
