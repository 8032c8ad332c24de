"""An embedded data set, a tiny vision tower and a tiny language model, to try the whole way without downloads."""
