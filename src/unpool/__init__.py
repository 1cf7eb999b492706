"""unpool: plan and decode pooled (composite) measurements.

An assay with few channels measures sums of many genes per cell, D = M P + noise; unpool recovers the cells x genes
matrix M with error bars, and says so when the data cannot determine it. The path of a user, one verb a module:

    simulate → design → measure → decode → evaluate → report

====================  =====================================================================================
`simulate`            true expression matrices to practise on
`Design`, `design`    which gene goes into which pool, and generators of good designs
`measure`, `pooled`   the forward model, and the wrapper for measured pools
`Model`               what expression looks like, learned from a reference
`decode`              pools in, genes out
`intervals`           ends of calibrated intervals of decoded values
`crossvalidate`       each pool hidden and predicted from the others: needs no truth
`evaluate`            scores, always beside trivial baselines
`report`, `pl`        one HTML page; plots
`benchmark`           every method and baseline on your own data, before any experiment
`solvers`             arrays in, `Solution` out
====================  =====================================================================================
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

__version__ = _version("unpool")

# A function that shares its name with its module is imported here, so that the name means the function.
from unpool import design, errors, simulate
from unpool.benchmark import benchmark
from unpool.crossvalidate import crossvalidate
from unpool.decode import decode
from unpool.design import Design
from unpool.evaluate import evaluate
from unpool.intervals import intervals
from unpool.measure import measure, pooled
from unpool.report import report

# public name -> the module that holds it ("": the name is a module), imported on first use: these need numba,
# scikit-learn or matplotlib
_LATER = {"Model": "model", "pl": "", "solvers": ""}

if TYPE_CHECKING:
    from unpool import pl, solvers
    from unpool.model import Model

__all__ = [
    "Design",
    "Model",
    "__version__",
    "benchmark",
    "crossvalidate",
    "decode",
    "design",
    "errors",
    "evaluate",
    "intervals",
    "measure",
    "pl",
    "pooled",
    "report",
    "simulate",
    "solvers",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'unpool' has no attribute {name!r}")
    home = _LATER[name]
    module = import_module(f"unpool.{home or name}")
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
