"""`import unpool` is quick: the heavy libraries come when they are used."""

import json
import subprocess
import sys

HEAVY = {
    "sklearn",
    "numba",
    "matplotlib",
    "jinja2",
    "dask",
    "scanpy",
    "cvxpy",
    "spams",
    "scipy.stats",
    "scipy.optimize",
}
PROBE = "import json, sys; import {module}; print(json.dumps([m for m in {heavy} if m in sys.modules]))"


def loaded(module: str) -> set[str]:
    code = PROBE.format(module=module, heavy=sorted(HEAVY))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_import_is_light():
    assert loaded("unpool") == set()
    assert loaded("unpool.cli") == set()


def test_the_probe_would_see_a_heavy_import():
    assert "matplotlib" in loaded("matplotlib")


def test_public_names_resolve_to_what_they_say():
    import unpool as up

    for name in up.__all__:
        assert getattr(up, name) is not None
    for name in ("decode", "evaluate", "measure", "pooled", "report"):
        assert callable(getattr(up, name)), f"up.{name} is hidden by its module"
