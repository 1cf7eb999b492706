"""Checks at the boundary, above all: does it look log-transformed?"""

import numpy as np
import pandas as pd
import pytest

import unpool as up
from unpool._validate import align, expression, generator
from unpool.errors import InputError


def counts(seed=0):
    return up.simulate.cell_types(400, 60, 5, rng=seed).X.astype(float)


def normalised(C):
    return C / C.sum(axis=1, keepdims=True) * 1e4


@pytest.mark.parametrize(
    "logged",
    [
        np.log1p(counts()),
        np.log2(1 + counts()),
        np.log10(1 + counts()),
        np.log1p(normalised(counts())),
        np.log1p(normalised(counts()))[:, :25],
        np.round(np.log1p(normalised(counts())), 3),
        np.log1p(normalised(counts())).astype(np.float32),
        np.log1p(up.simulate.low_rank(rng=0).X),
    ],
)
def test_logs_are_refused(logged):
    with pytest.raises(InputError, match="looks log-transformed"):
        expression(logged, what="the reference")


@pytest.mark.parametrize(
    "linear",
    [
        counts(),
        normalised(counts()),
        normalised(counts()) / 3000,
        counts() / np.linalg.norm(counts(), axis=0),
        counts() / 7.0,
        up.simulate.low_rank(rng=0).X,
        np.random.default_rng(0).gamma(0.5, 3.0, (200, 30)),
        np.random.default_rng(0).uniform(0, 10, (200, 30)),
        np.random.default_rng(0).random((200, 30)),
        np.abs(np.random.default_rng(0).normal(size=(200, 30))) * 4,
        np.random.default_rng(0).poisson(5.0, (200, 30)),
        np.eye(5),
        np.zeros((4, 4)),
    ],
)
def test_linear_values_pass(linear):
    expression(linear, what="the reference")


def test_scanpys_mark_is_believed():
    truth = up.simulate.cell_types(50, 20, 2, rng=0)
    truth.uns["log1p"] = {"base": None}
    with pytest.raises(InputError, match=r"uns\['log1p'\]"):
        expression(truth, what="the reference")


def test_items_are_named():
    frame = pd.DataFrame(np.ones((3, 2)), index=["x", "y", "z"], columns=["CD3", "CD4"])
    for value, says in [
        (np.nan, "'CD4' is nan in cell 'z'"),
        (np.inf, "'CD4' is inf"),
        (-2.0, "'CD4' is -2 in cell 'z'"),
    ]:
        bad = frame.copy()
        bad.loc["z", "CD4"] = value
        with pytest.raises(InputError, match=says):
            expression(bad, what="the reference")
    with pytest.raises(InputError, match="'CD4' holds"):
        expression(frame.assign(CD4="high"), what="the reference")


def test_alignment_names_the_missing():
    assert list(align(["b", "a"], ["a", "b", "c"], wanted_by="x", held_by="y")) == [1, 0]
    with pytest.raises(InputError, match="'cd3'.*closest name there is 'CD3'"):
        align(["cd3"], ["CD3", "CD4"], wanted_by="the design", held_by="the reference")


def test_generators():
    assert generator(3).random() == np.random.default_rng(3).random()
    for bad in (-1, True, "x", 1.5, np.random.RandomState(0)):
        with pytest.raises(InputError):
            generator(bad)


def test_things_that_are_no_matrix():
    for thing in (None, 3, "file.h5ad", object()):
        with pytest.raises(InputError, match=rf"the reference is a {type(thing).__name__}; expected an AnnData"):
            expression(thing, what="the reference")
