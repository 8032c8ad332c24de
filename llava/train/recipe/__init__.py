"""What a run is to do: the recipe's keys, its files, and the checks of it before anything is loaded."""
