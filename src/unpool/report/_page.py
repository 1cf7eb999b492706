"""Content and pictures, laid out as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from unpool.evaluate import BASELINES
from unpool.report._content import Content, number

__all__ = ["render"]


def render(content: Content, figures: Mapping[str, Markup]) -> str:
    """Fill the template; every name is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["num"] = number
    template = environment.from_string(_file("page.html.j2"))
    return template.render(c=content, figures=figures, baselines=BASELINES, css=Markup(_file("page.css")))


def _file(name: str) -> str:
    return files("unpool.report").joinpath(name).read_text(encoding="utf-8")
