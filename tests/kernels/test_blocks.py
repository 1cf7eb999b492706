"""Blocks on threads: inside a worker every library has one thread; outside nothing changes."""

import sklearn.cluster  # noqa: F401  brings OpenMP
from threadpoolctl import threadpool_info, threadpool_limits

from unpool.kernels import blocks


def counts(_=None):
    return {(library["user_api"], library["num_threads"]) for library in threadpool_info()}


def test_inside_a_worker_every_library_has_one_thread(monkeypatch):
    with threadpool_limits(2):
        before = counts()
        assert ("openmp", 2) in before

        def check(n_threads):
            for found in blocks.map_threads(counts, range(4), n_threads):
                assert {number for _, number in found} == {1}

        check(1)
        check(2)
        assert counts() == before

        class Unlimited(blocks.ThreadPoolExecutor):  # the twin that tells its threads nothing
            def __init__(self, n, **_):
                super().__init__(n)

        monkeypatch.setattr(blocks, "ThreadPoolExecutor", Unlimited)
        assert any(("openmp", 2) in found for found in blocks.map_threads(counts, range(4), 2))


def test_results_come_in_order():
    assert blocks.map_threads(lambda i: i * i, range(20), 3) == [i * i for i in range(20)]
    assert blocks.map_threads(lambda i: i, [], 3) == []
