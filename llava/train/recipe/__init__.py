"""What a run is told to do: the recipe, its dotted keys, its bounds and the checks of it before anything is loaded."""
