"""What can be chosen of each method of fusion, one file a method. Imports no torch."""
