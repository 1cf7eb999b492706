"""Design and its generators."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unpool as up
from unpool.errors import InputError

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "imc16_published_design.csv"


def overlaps(W):
    O = (W @ W.T).astype(int)
    return O[np.triu_indices(len(W), 1)]


def test_names_and_defaults():
    d = up.Design([[1, 0], [0.5, 2]])
    assert (d.genes, d.pools, d.names) == (("gene_0", "gene_1"), ("pool_0", "pool_1"), ("design_0",))
    assert (d.n_genes, d.n_pools, d.n_designs, d.pack_ratio) == (2, 2, 1, 1.0)
    assert d.matrices[0].dtype == np.float64
    assert "2 genes in 2 pools" in repr(d)
    assert "0.5 to 2" in repr(d)


def test_frozen_and_hashable_by_content():
    W = np.array([[1.0, 0.0], [1.0, 1.0]])
    a, b = up.Design(W), up.Design(W.copy())
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    assert pickle.loads(pickle.dumps(a)) == a
    assert copy.deepcopy(a) == a
    # every part of the content counts
    assert a != up.Design(W * 2)
    assert a != up.Design(W, genes=["a", "b"])
    assert a != up.Design(W, pools=["a", "b"])
    assert a != up.Design(W, names=["x"])
    assert a != up.Design(W, genes=["gene_0,", "gene_1"])
    W[0, 0] = 7.0
    assert a.matrices[0][0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        a.matrices[0][0, 0] = 5
    with pytest.raises(AttributeError):
        a.genes = ()


def test_several_designs_share_channels():
    d = up.Design([np.ones((3, 2)), np.ones((3, 4))], names=["a", "b"])
    assert d.n_designs == 2
    assert d.n_pools == 4
    assert not d.matrices[0][:, 2:].any()
    assert up.Design(np.ones((2, 3, 4))).n_designs == 2


@pytest.mark.parametrize(
    ("weights", "options", "says"),
    [
        ([[1, -1], [0, 1]], {}, "pool 1 is -1"),
        ([[1, np.nan], [0, 1]], {}, "finite"),
        ([[1, 0], [1, 0]], {}, "no gene uses pool 'pool_1'"),
        ([["a", "b"], ["c", "d"]], {}, "not a number"),
        ([1, 2, 3], {}, "genes x pools"),
        (np.ones((0, 3)), {}, "at least one"),
        ([np.ones((3, 2)), np.ones((4, 2))], {}, "design 1 has 4 genes"),
        ([[1, 0], [0, 1]], {"genes": ["a", "a"]}, "'a' occurs 2 times"),
        ([[1, 0], [0, 1]], {"genes": ["a"]}, "1 gene names for 2"),
        ([[1, 0], [0, 1]], {"pools": ["a", ""]}, "empty name"),
    ],
)
def test_bad_weights_are_named(weights, options, says):
    with pytest.raises(InputError, match=says):
        up.Design(weights, **options)


def test_bernoulli_fills_every_gene_and_pool():
    d = up.design.bernoulli(200, 12, p=0.1, n_designs=3, rng=1)
    for W in d.matrices:
        assert W.any(axis=0).all()
        assert W.any(axis=1).all()
        assert np.isin(W, (0, 1)).all()
    assert d == up.design.bernoulli(200, 12, p=0.1, n_designs=3, rng=1)
    assert d != up.design.bernoulli(200, 12, p=0.1, n_designs=3, rng=2)
    assert not np.array_equal(d.matrices[0], d.matrices[1])
    many = np.mean([up.design.bernoulli(40, 40, p=0.3, rng=s).matrices[0].mean() for s in range(20)])
    assert abs(many - 0.3) < 0.01
    with pytest.raises(InputError, match="larger p"):
        up.design.bernoulli(3, 50, p=0.001, rng=0)


@pytest.mark.parametrize(("g", "m", "k"), [(100, 25, 3), (16, 8, 2), (7, 5, 2), (10, 30, 3), (300, 10, 1), (5, 5, 5)])
def test_balanced_is_balanced(g, m, k):
    W = up.design.balanced(g, m, pools_per_gene=k, rng=0).matrices[0]
    assert (W.sum(axis=1) == k).all()
    fill = W.sum(axis=0)
    assert fill.max() - fill.min() <= 1
    assert np.isin(W, (0, 1)).all()


def test_balanced_spreads_the_overlaps():
    """Against the broken twin that deals the pools without the search."""
    from unpool.design._random import _equally_full

    searched = up.design.balanced(100, 25, rng=0).matrices[0]
    dealt = _equally_full(100, 25, 3, np.random.default_rng(0))

    def spread(W):
        return (overlaps(W) ** 2).sum() < 1750 and overlaps(W).max() < 3

    assert spread(searched)
    assert not spread(dealt)


def test_sizes_are_checked():
    with pytest.raises(InputError, match="either n_pools or pack_ratio"):
        up.design.balanced(10)
    with pytest.raises(InputError, match="either n_pools or pack_ratio"):
        up.design.balanced(10, 5, pack_ratio=0.5)
    with pytest.raises(InputError, match="at most 4"):
        up.design.balanced(10, 4, pools_per_gene=5)
    with pytest.raises(InputError, match="at most 6"):
        up.design.balanced(2, 7, pools_per_gene=3)
    with pytest.raises(InputError, match="RandomState"):
        up.design.balanced(10, 5, rng=np.random.RandomState(0))
    with pytest.raises(InputError, match="whole number"):
        up.design.balanced(10, 5.5)
    with pytest.raises(InputError, match="'b' occurs 2"):
        up.design.balanced(["a", "b", "b"], 2, pools_per_gene=1)
    assert up.design.balanced(10, pack_ratio=0.5, pools_per_gene=2, rng=0).n_pools == 5


def test_equalised_speaks_equally_loud():
    rng = np.random.default_rng(0)
    reference = pd.DataFrame(rng.gamma(1.0, [1.0, 100.0, 0.01], (200, 3)), columns=["c", "a", "b"])
    d = up.design.balanced(["a", "b", "c"], 2, pools_per_gene=1, rng=0)
    e = d.equalised(reference)
    loudness = np.sqrt((reference[list(e.genes)] ** 2).mean()).to_numpy() * e.matrices[0].max(axis=1)
    np.testing.assert_allclose(loudness, 1.0)
    unaligned = np.sqrt((reference**2).mean()).to_numpy() * e.matrices[0].max(axis=1)
    assert not np.allclose(unaligned, 1.0)  # the twin that forgets to match genes by name
    silent = reference.assign(a=0.0)
    assert np.isfinite(d.equalised(silent).matrices[0]).all()
    with pytest.raises(InputError, match="not in the reference: 'b'"):
        d.equalised(reference.drop(columns="b"))


@pytest.mark.parametrize("n_designs", [1, 3])
def test_csv_round_trip(tmp_path, n_designs):
    d = up.design.balanced(
        ["E-Cad/P-Cad", "<script>", "a b", 'q"x', "é"], 3, pools_per_gene=2, n_designs=n_designs, rng=0
    )
    rng = np.random.default_rng(0)
    d = up.Design([W * rng.random(W.shape) for W in d.matrices], genes=d.genes)
    d.to_csv(tmp_path / "d.csv")
    assert up.Design.read_csv(tmp_path / "d.csv") == d


def test_csv_in_both_orientations(tmp_path):
    W = pd.DataFrame(np.eye(5)[:, :3] + 0.5, index=list("abcde"), columns=["x", "y", "z"])
    W.to_csv(tmp_path / "genes.csv")
    W.T.to_csv(tmp_path / "pools.csv")
    W.T.rename_axis("pool").iloc[:, :2].to_csv(tmp_path / "named.csv")
    assert up.Design.read_csv(tmp_path / "genes.csv") == up.Design(W) == up.Design.read_csv(tmp_path / "pools.csv")
    assert up.Design.read_csv(tmp_path / "named.csv").genes == ("a", "b")


def test_csv_errors(tmp_path):
    for text, says in [
        (",x,y\na,1,2\nb,high,1\n", "row 'b', column 'x' is 'high'"),
        (",x,y\na,1,2\nb,-1,1\n", "row 'b', column 'x' is '-1'"),
        (",x,x\na,1,2\nb,1,1\n", "'x' occurs 2 times"),
        ("nothing\n", "holds no design"),
        ("design,gene,x\nd,a,1\nd,b,1\ne,a,1\n", "'b'"),
    ]:
        (tmp_path / "d.csv").write_text(text)
        with pytest.raises((InputError, OSError), match=says):
            up.Design.read_csv(tmp_path / "d.csv")


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published design is not at hand")
def test_published_design_reads_as_it_is():
    d = up.Design.read_csv(PUBLISHED)
    assert (d.n_genes, d.n_pools) == (16, 8)
    np.testing.assert_allclose(d.matrices[0].sum(axis=1), 1.0)
