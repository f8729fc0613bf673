"""The tables and figures of arXiv 2405.04517: what it prints, and ours beside it."""
