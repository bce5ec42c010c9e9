"""Pure-NumPy twins of the compiled core: same names, same signatures, same results.

They are written for reading and for testing, not for speed: each states its algorithm in the
plainest NumPy. ``fastmtl.reference.gram`` is the twin of the compiled gram module, and so on.
"""
