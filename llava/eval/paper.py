"""The paper's numbers that a report shows beside ours."""

# Table IV: the means of the 20 benchmarks. It gives no table of the single ones.
OVERALL = {"baseline": 50.61, "manager": 51.67, "grid": 53.87, "grid_manager": 55.21}
