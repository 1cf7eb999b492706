"""pl: each plot returns the Axes that it was given and draws the right numbers; checks have broken twins."""

from __future__ import annotations

from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.figure import Figure

import unpool as up
from unpool import pl
from unpool.errors import InputError
from unpool.evaluate import BASELINES, Scores, evaluate

NAMES = ["E-Cad/P-Cad", "<script>", "$x^$", "CD8_a", "a & b", "g5", "g6", "g7", "g8", "g9", "g10", "g11"]


@pytest.fixture(scope="module")
def e() -> dict[str, Any]:
    cells = up.simulate.cell_types(250, 12, 4, rng=1)
    cells.var_names = NAMES
    reference, truth = cells[:100].copy(), cells[100:].copy()
    pools = up.measure(truth, up.design.balanced(NAMES, 6, pools_per_gene=2, rng=0), snr=5, rng=0)
    X = np.asarray(truth.X, dtype=np.float64)
    decoded = ad.AnnData(X + np.random.default_rng(0).normal(0, 1, X.shape), obs=truth.obs, var=truth.var)
    decoded.layers["sd"] = np.ones_like(X)
    decoded.obs["unpool_misfit"] = np.random.default_rng(0).normal(0, 1, 150)
    decoded.uns["unpool"] = {"method": "mixture"}
    scores = evaluate(decoded, truth, pooled=pools, reference=reference)
    return {"decoded": decoded, "truth": truth, "pools": pools, "scores": scores}


def axes() -> Axes:
    return Figure(layout="constrained").subplots()


def drawn(ax: Axes) -> str:
    """Render, so that every warning of matplotlib would show; return the text on the figure."""
    ax.figure.canvas.draw()
    return "|".join(t.get_text() for t in ax.findobj(mpl.text.Text))


def test_accuracy_draws_every_gene_of_the_decoder_and_of_each_baseline(e: dict[str, Any]) -> None:
    ax = axes()
    assert pl.accuracy(e["scores"], ax=ax) is ax
    text = drawn(ax)

    def check(scores: Scores) -> None:
        r = scores.genes["pearson"].to_numpy()
        bars = [(p.get_x(), p.get_width(), p.get_height()) for p in ax.patches]
        assert sum(h for *_, h in bars) == len(r)
        assert all(h == np.sum((r >= x) & (r < x + w)) for x, w, h in bars[:-1])
        strips = {c.get_label(): c for c in ax.collections if isinstance(c, LineCollection)}
        for name, label in BASELINES.items():
            at = [segment[0, 0] for segment in strips[label].get_segments()]
            assert np.allclose(at, scores.genes[f"pearson_{name}"])
            assert label in text
            assert f"{scores.summary['baselines'][name]['pearson_mean']:.3f}" in text

    check(e["scores"])
    for column in ("pearson", "pearson_linear"):
        broken = e["scores"].genes.copy()
        broken[column] = broken[column] * 0.7
        with pytest.raises(AssertionError):
            check(Scores(broken, e["scores"].cells, e["scores"].summary))


@pytest.mark.parametrize("n_designs", [1, 3])
def test_design_draws_a_square_for_every_weight(n_designs: int) -> None:
    design = up.design.balanced(NAMES, 6, pools_per_gene=2, n_designs=n_designs, rng=0)
    ax = axes()
    assert pl.design(design, ax=ax) is ax
    text = drawn(ax)
    (squares,) = (c for c in ax.collections if isinstance(c, PolyCollection))

    def check(design: up.Design) -> None:
        centres = sorted(tuple(np.floor(p.vertices.mean(axis=0)).astype(int)) for p in squares.get_paths())
        want = [(j, b * 7 + k) for b, w in enumerate(design.matrices) for j, k in zip(*np.nonzero(w), strict=True)]
        assert centres == sorted(want)

    check(design)
    with pytest.raises(AssertionError):
        check(up.Design([w[::-1] for w in design.matrices], genes=NAMES))
    assert all(name in text for name in NAMES)


def test_design_shows_weights_relative_to_the_genes_largest() -> None:
    ax = pl.design(up.Design([[4.0, 2.0], [0.0, 1e-3]]), ax=axes())
    (squares,) = ax.collections
    assert np.round(squares.get_facecolors()[:, 3], 6).tolist() == [1.0, 0.6, 1.0]


@pytest.mark.parametrize("gene", NAMES[:3])
def test_genes_draws_true_against_decoded_whatever_the_order_of_the_truth(e: dict[str, Any], gene: str) -> None:
    order = np.random.default_rng(0).permutation(150)
    ax = axes()
    assert pl.genes(e["decoded"], e["truth"][order, ::-1].copy(), gene, ax=ax) is ax
    assert gene in drawn(ax)
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))

    def check(rows: Any) -> None:
        j = NAMES.index(gene)
        assert np.allclose(dots.get_offsets(), np.stack([e["truth"].X[rows, j], e["decoded"].X[:, j]], axis=1))

    check(np.arange(150))
    with pytest.raises(AssertionError):
        check(order)


def test_genes_draws_the_interval_cut_at_zero(e: dict[str, Any]) -> None:
    ax = pl.genes(e["decoded"], e["truth"], "g5", ax=axes())
    (bars,) = (c for c in ax.collections if isinstance(c, LineCollection))
    y = np.asarray(e["decoded"].X[:, 5])
    want = np.maximum(np.stack([y - 1.6448536, y + 1.6448536], axis=1), 0)
    assert np.allclose([segment[:, 1] for segment in bars.get_segments()], want, atol=1e-6)
    with pytest.raises(InputError, match="closest name there is 'g5'"):
        pl.genes(e["decoded"], e["truth"], "g55", ax=axes())


def test_misfit_counts_every_cell_and_the_furthest_do_not_squash_the_rest(e: dict[str, Any]) -> None:
    ax = axes()
    assert pl.misfit(e["decoded"], ax=ax) is ax
    drawn(ax)
    assert sum(p.get_height() for p in ax.patches) == 150

    def check(plot: Any) -> None:
        obs = pd.DataFrame({"unpool_misfit": [*np.arange(399.0), 1e9]}, index=[f"c{i}" for i in range(400)])
        ax = plot(ad.AnnData(np.zeros((400, 1)), obs=obs), ax=axes())
        assert sum(p.get_height() for p in ax.patches) == 400
        assert max(p.get_x() for p in ax.patches) < 400

    check(pl.misfit)
    with pytest.raises(AssertionError):
        check(lambda decoded, ax: ax.hist(decoded.obs["unpool_misfit"], bins=40) and ax)


def test_a_new_figure_is_made_where_no_axes_are_given_and_no_style_changes(e: dict[str, Any]) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    made = [
        pl.accuracy(e["scores"]),
        pl.design(up.design.balanced(12, 6, rng=0)),
        pl.genes(e["decoded"], e["truth"], "g5"),
        pl.misfit(e["decoded"]),
    ]
    assert len({id(ax.figure) for ax in made}) == 4
    assert dict(mpl.rcParams) == before
    plt.close("all")
