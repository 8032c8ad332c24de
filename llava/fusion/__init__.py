"""How a tower's layers reach the language model, one file a method."""
