"""`llava data`: download, prepare, check and preview what is trained on."""
