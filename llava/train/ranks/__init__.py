"""The processes of a run: where they run, whether they agree, what connects them."""
