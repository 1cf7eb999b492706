"""Kernels run where their machine code cannot be kept."""

import os
import subprocess
import sys

PROBE = "from unpool.kernels._numba import njit\nf = njit()(lambda x: x + 1)\nprint(f(1))"


def run(code, **env):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | env)
    return result.returncode, result.stdout.strip(), result.stderr


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    here = tmp_path / "probe.py"
    body = "from {module} import njit\n@njit({options})\ndef f(x):\n    return x + 1\nprint(f(1))\n"
    code = "import runpy; runpy.run_path({path!r}, run_name='__main__')"
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16));"
    for module, options, works in [("unpool.kernels._numba", "", True), ("numba", "cache=True", False)]:
        here.write_text(body.format(module=module, options=options))
        full_disk = run(limit + code.format(path=str(here)), NUMBA_CACHE_DIR=str(tmp_path / module))
        assert (full_disk[:2] == (0, "2")) is works, full_disk  # plain numba is the broken twin
