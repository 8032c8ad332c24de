"""What training asks of the two towers alone: recipes and their checks, building the model, pairs, evaluation."""
