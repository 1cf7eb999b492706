"""Solvers: arrays in, `Solution` out; one method a file.

`D` (cells x pools) and `P` (genes x pools) are matrices, or equally long sequences of matrices, one entry a design.

==================  ============================================================================================
`minimum_norm`      D P⁺, the least norm that fits: the baseline
`nuclear_norm`      least nuclear norm within a radius of D, X >= 0, with a dual certificate
`duality_gap`       what that certificate proves, in ten lines of numpy
`modules`           sparse modules of a reference and l1 decoding: the published method, as a peer
`nnls`              nonnegative least squares, every row of B against the same A: exact, a plain array
`als`               alternating least squares, M = U Vᵀ with U, V >= 0: a stationary point, never certified
==================  ============================================================================================
"""

# Imported here, not on first use: a function and its module share a name, and whichever is bound last wins.
from unpool.solvers._solution import Solution
from unpool.solvers.als import als
from unpool.solvers.certificate import duality_gap
from unpool.solvers.minimum_norm import minimum_norm
from unpool.solvers.modules import modules
from unpool.solvers.nnls import nnls
from unpool.solvers.nuclear_norm import nuclear_norm

__all__ = ["Solution", "als", "duality_gap", "minimum_norm", "modules", "nnls", "nuclear_norm"]
