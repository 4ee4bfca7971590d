"""Workers on a cluster: two nodes on the loopback interface, one core each, whose folders are apart.

Each test starts and ends its own; with none of Ray installed they are skipped.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import psutil
import pytest
import torch

from prunelab import __version__, engine, paths, records
from prunelab.recipes import RIGL

ray = pytest.importorskip("ray", reason="the extra prunelab[cluster] is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")
from prunelab import ray_workers  # noqa: E402

pytestmark = pytest.mark.slow

TINY = {"model": "lenet_300_100", "width": 0.1, "dataset": "digits", "n_train": 256, "batch_size": 64, "n_epochs": 2}
SAME = ("id", "options", "parent", "metrics", "curves", "layers", "moves")  # whatever trained it


def tiny(seed=0, parents=(), **changes):
    return RIGL.run(seed=seed, parents=parents, **TINY | {"method": "static"} | changes)


def family(n_epochs=2):
    """Two parents, and three children of each, which go on from its weights and masks."""
    parents = [tiny(seed, density=0.2, n_epochs=n_epochs) for seed in (0, 1)]
    return parents + [
        tiny(seed, (parents[seed % 2],), start="solution", density=0.2, n_epochs=n_epochs) for seed in range(2, 8)
    ]


def essence(found):
    return [{key: record[key] for key in SAME} for record in found]


def run(plan, **options):
    return engine.run(plan, engine="ray", device="cpu", progress=False, **options)


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """Whoever asks has a store of its own."""
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "asking" / "runs")
    return paths.RUNS


@pytest.fixture
def nodes(asking, monkeypatch):
    cluster = cluster_utils.Cluster()

    def add(folder, **environment):
        node = cluster.add_node(num_cpus=1, env_vars={"PRUNELAB_DATA": str(folder)} | environment)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        return node

    cluster.add = add
    yield cluster
    cluster.shutdown()


def killed(how, nodes, two, folder):
    """Waits until a run on node two has begun, then kills its worker, or the whole node."""
    while not list(folder.glob("cluster/*/*/progress")):
        time.sleep(0.05)
    if how == "node":
        return nodes.remove_node(two, allow_graceful=False)
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "ray::_Actor" and process.environ().get("PRUNELAB_DATA") == str(folder):
            process.kill()


@pytest.mark.parametrize("how", [None, "worker", "node"])
def test_plan_gives_the_records_of_the_local_engine_whatever_is_killed(nodes, asking, tmp_path, how):
    _, two = nodes.add(tmp_path / "one"), nodes.add(tmp_path / "two")
    plan = family(n_epochs=60)
    if how:
        threading.Thread(target=killed, args=(how, nodes, two, tmp_path / "two"), daemon=True).start()
    found = run(plan)
    assert essence(found) == essence(engine.run(plan, device="cpu", progress=False, store=tmp_path / "local"))
    assert len(records.local(asking)) == len(plan) and run(plan, train=False) == found
    trained = {folder: len(list(folder.glob("cluster/*/*"))) for folder in (tmp_path / "one", tmp_path / "two")}
    assert all(trained.values()) and not list(tmp_path.glob("*/cluster/*/*/record.json")), "the store has them"


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_whoever_asks_is_stopped_and_asks_again(asking, tmp_path, monkeypatch, sent):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # a cluster on this machine, for as long as the plan takes
    script = tmp_path / "ask.py"
    script.write_text(
        textwrap.dedent(f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background has it ignored
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from prunelab import engine
        from test_ray_workers import family
        if __name__ == "__main__":
            engine.run(family(n_epochs=60), engine="ray", device="cpu", progress=False, fresh=True)
        """)
    )
    environment = os.environ | {"PRUNELAB_DATA": str(asking.parent)}
    asker = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE, text=True)
    while not list(asking.glob("*/record.json")):
        assert asker.poll() is None, asker.stderr.read()
        time.sleep(0.05)
    asker.send_signal(sent)
    said = asker.communicate(timeout=60)[1]
    assert sent != signal.SIGINT or "of 8 runs are on record now" in said
    kept = essence(records.local(asking))
    assert 0 < len(kept) < 8
    subprocess.run([sys.executable, script], env=environment, check=True)
    found = essence(records.local(asking))
    expected = engine.run(family(n_epochs=60), device="cpu", progress=False, store=tmp_path / "local")
    assert sorted(found, key=str) == sorted(essence(expected), key=str) and all(record in found for record in kept)


def test_nodes_that_cannot_take_part_are_left_aside_and_say_why(nodes, asking, tmp_path, monkeypatch):
    """One has another version of the library, one lacks the images; then nobody is left."""
    other = tmp_path / "other" / "prunelab"
    shutil.copytree(Path(engine.__file__).parent, other)
    (other / "__init__.py").write_text((other / "__init__.py").read_text() + '\n__version__ = "0.0.1"\n')
    nodes.add(tmp_path / "one", PYTHONPATH=str(other.parent))
    two = nodes.add(tmp_path / "two")
    with warnings.catch_warnings(record=True) as told:
        assert len(run(family())) == 8
        unwritten, other = tiny(20), tiny(21)
        (asking / unwritten.id / "record.json").mkdir(parents=True)  # as a full disk would, where the plan was started
        with pytest.raises(engine.RunFailed, match=r"1 of 2 runs failed.*\n.*IsADirectoryError"):
            run([unwritten, other])
        assert records.local(asking, [other.id])
    said = rf"has prunelab 0\.0\.1, code \w+, torch {re.escape(torch.__version__)}, and not prunelab {__version__}"
    assert any(re.search(said, str(each.message)) for each in told)
    nodes.remove_node(two)
    with pytest.warns(), pytest.raises(RuntimeError, match=r"node .* has prunelab 0\.0\.1"):
        run([tiny(9)])


def test_node_without_images_that_are_streamed_is_named(nodes, asking, tmp_path, monkeypatch):
    from PIL import Image

    for image in ("train/a/1", "train/b/1", "test/a/1", "test/b/1"):
        path = tmp_path / "asking" / "imagenet" / f"{image}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(paths, "DATA", tmp_path / "asking")
    nodes.add(tmp_path / "one")
    streamed = tiny(dataset="imagenet", image_size=32, n_train=None, batch_size=2)
    with pytest.warns(), pytest.raises(RuntimeError, match=r"there is no folder .*one/imagenet"):
        run([streamed])
    assert not records.local(asking)


def test_store_of_objects_that_is_too_small_is_told(monkeypatch):
    def full(what):
        raise ray.exceptions.ObjectStoreFullError("5 MB are free")

    monkeypatch.setattr(ray, "put", full)
    with pytest.raises(
        RuntimeError, match=r"(?s)cannot hold the images of digits: .*5 MB are free.*object-store-memory"
    ):
        ray_workers._images_of([tiny()])


def test_cluster_that_is_not_there_is_named(asking, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RuntimeError, match=r"no cluster could be reached at RAY_ADDRESS=127\.0\.0\.1:1"):
        run([tiny()])
    assert not records.local(asking)
