"""What expression looks like: a bag of mixtures, fitted from cells, and its posterior given pools."""

from __future__ import annotations

from unpool.model._adapt import Strengths
from unpool.model._crossfit import HeldOut, crossfit
from unpool.model._model import Model
from unpool.model._posterior import Posterior
from unpool.model._select import Rehearsal, rehearse

__all__ = ["HeldOut", "Model", "Posterior", "Rehearsal", "Strengths", "crossfit", "rehearse"]
