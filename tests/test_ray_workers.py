"""Workers on a cluster: two nodes on the loopback interface, whose folders are apart."""

import pytest

from prunelab import engine, paths, records
from prunelab.recipes import RIGL

ray = pytest.importorskip("ray", reason="the extra prunelab[cluster] is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow

TINY = {"model": "lenet_300_100", "width": 0.1, "dataset": "digits", "n_train": 256, "batch_size": 64, "n_epochs": 2}


def tiny(seed=0, parents=(), **changes):
    return RIGL.run(seed=seed, parents=parents, **TINY | {"method": "static"} | changes)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two nodes of one core each; whoever asks has a store of its own."""
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "asking" / "runs")
    nodes = cluster_utils.Cluster()
    for name in ("one", "two"):
        nodes.add_node(num_cpus=1, env_vars={"PRUNELAB_DATA": str(tmp_path / name)})
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield nodes
    nodes.shutdown()


def test_a_plan_gives_the_records_of_the_local_engine(cluster, tmp_path):
    plan = [tiny(seed) for seed in range(4)]
    found = engine.run(plan, engine="ray", device="cpu", progress=False)
    expected = engine.run(plan, device="cpu", progress=False, store=tmp_path / "local")
    for key in ("id", "metrics", "curves", "layers", "moves"):
        assert [record[key] for record in found] == [record[key] for record in expected]
    assert engine.run(plan, train=False) == found  # they are in the store of whoever asked
    assert {path.name for path in tmp_path.iterdir()} >= {"one", "two"}  # both nodes have worked


def test_a_cluster_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RuntimeError, match=r"no cluster answers at RAY_ADDRESS=127\.0\.0\.1:1"):
        engine.run([tiny()], engine="ray", device="cpu", progress=False)
    assert not records.local(paths.RUNS)
