"""`llava eval report`: scores of runs side by side, averages, intervals, tables and pictures."""
