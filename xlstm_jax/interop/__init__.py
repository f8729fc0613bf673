"""Parameters and configurations to and from other projects: one file per family of formats, which
`formats.py` lists.
"""
