"""Parameters and configurations to and from the originals: PyPI `xlstm` (paper.py), Hugging Face
and `xLSTMLarge` (large.py).
"""
