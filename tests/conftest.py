"""Small shared files: a reference, a truth, a design and pools of 12 genes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import unpool as up
from unpool import io


@pytest.fixture(scope="session")
def small():
    """In memory: 300 reference cells, 200 cells to decode, 12 genes in 6 pools."""
    cells = up.simulate.cell_types(500, 12, 3, rng=0)
    reference, truth = cells[:300].copy(), cells[300:].copy()
    design = up.design.balanced(list(cells.var_names), 6, pools_per_gene=2, rng=0)
    pools = up.measure(truth, design, snr=5, rng=0)
    return SimpleNamespace(reference=reference, truth=truth, design=design, pools=pools)


@pytest.fixture
def files(tmp_path, small):
    """The same on disk, in a folder of its own."""
    folder: Path = tmp_path / "in"
    folder.mkdir()
    for name in ("reference", "truth", "pools"):
        io.write_h5ad(getattr(small, name), folder / f"{name}.h5ad")
    small.design.to_csv(folder / "design.csv")
    return folder
