"""Solvers: arrays in, `Solution` out; one method a file.

`D` (cells x pools) and `P` (genes x pools) are matrices, or equally long sequences of matrices, one entry a design.

==================  ============================================================================================
`nnls`              nonnegative least squares, every row of B against the same A: exact, a plain array
==================  ============================================================================================
"""

# Imported here, not on first use: a function and its module share a name, and whichever is bound last wins.
from unpool.solvers._solution import Solution
from unpool.solvers.nnls import nnls

__all__ = ["Solution", "nnls"]
