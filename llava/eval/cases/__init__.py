"""`llava eval cases`: the documents where runs differ, as a page and as pictures."""
