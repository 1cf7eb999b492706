"""Solvers: arrays in, `Solution` out; one method a file.

`D` (cells x pools) and `P` (genes x pools) are matrices, or equally long sequences of matrices, one entry a design.
"""

# Imported here, not on first use: a function and its module share a name, and whichever is bound last wins.
from unpool.solvers._solution import Solution
from unpool.solvers.modules import modules

__all__ = ["Solution", "modules"]
