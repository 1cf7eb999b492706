"""Pooling designs: the `Design` itself, and generators of good ones."""

from __future__ import annotations

from unpool.design._design import Design
from unpool.design._random import balanced, bernoulli

__all__ = ["Design", "balanced", "bernoulli"]
