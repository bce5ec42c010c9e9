"""The compiled core: arrays and numbers in, arrays and numbers out.

Nothing here knows of estimators, labels or data frames. Every public function has a NumPy twin of
the same name and signature in :mod:`fastmtl.reference`.
"""
