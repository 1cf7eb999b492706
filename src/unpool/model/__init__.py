"""What expression looks like: a bag of mixtures, fitted from cells, and its posterior given pools."""

from __future__ import annotations

from unpool.model._crossfit import HeldOut, crossfit
from unpool.model._model import Model
from unpool.model._posterior import Posterior
from unpool.model._select import extras_help

__all__ = ["HeldOut", "Model", "Posterior", "crossfit", "extras_help"]
