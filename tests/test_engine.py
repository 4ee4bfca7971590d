"""The engine: each run once, whatever is killed, and whoever else works on the same store."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, deque
from contextlib import suppress
from typing import ClassVar

import pytest
import torch
from conftest import find_record
from filelock import FileLock

import prunelab
from prunelab import data, engine, paths, progress, records, stores, workers
from prunelab.checkpoints import load_checkpoint, save_checkpoint
from prunelab.recipes import RIGL, runner
from prunelab.recipes.recipe import State
from prunelab.runs import Run

TINY = {"model": "lenet_300_100", "width": 0.1, "dataset": "digits", "n_train": 256, "batch_size": 64, "n_epochs": 2}


def tiny(seed=0, **changes):
    return RIGL.run(seed=seed, **TINY | {"method": "static"} | changes)


def long_run(seed=0):
    """Trains for minutes unless it is stopped."""
    return tiny(seed, n_epochs=20_000)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "data" / "runs")
    return paths.RUNS


NO_STATE = State({}, num_classes=10, options={}, training_macs=0.0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_record_holds_options_metrics_and_provenance_and_nothing_else_is_left(store):
    item = tiny(method="rigl", density=0.2)
    record = workers.execute(item, store=store, device="cpu")
    assert names(store / item.id) == ["lock", "record.json"]
    assert find_record(item.id, store) == record
    assert record["options"] == RIGL.defaults | dict(item.options)
    assert record["status"] == "finished" and record["parent"] is None and record["seed"] == 0
    assert record["metrics"]["measured_density"] == pytest.approx(0.2, abs=2e-3)
    assert len(record["curves"]["epoch"]) == 2
    assert record["provenance"]["dataset"]["name"] == "digits" and record["provenance"]["seconds"] > 0
    assert {"date", "commit", "torch", "python", "device", "threads"} <= record["provenance"].keys()


def test_run_on_record_is_not_trained_again(store, monkeypatch):
    first = workers.execute(tiny(), store=store, device="cpu")
    monkeypatch.setattr(runner, "executing", None)  # training would fail
    assert workers.execute(tiny(), store=store, device="cpu") == first
    assert engine.run([tiny()], device="cpu", progress=False) == [first]


def test_same_run_gives_the_same_numbers(store, tmp_path):
    first = workers.execute(tiny(method="set"), store=store, device="cpu")
    second = workers.execute(tiny(method="set"), store=tmp_path / "other", device="cpu")
    for key in ("metrics", "curves", "layers", "moves"):
        assert first[key] == second[key]


def test_diverged_run_is_recorded_as_such(store):
    record = workers.execute(tiny(learning_rate=1e30, n_epochs=4), store=store, device="cpu")
    assert record["status"] == "diverged"
    assert record["metrics"]["train_loss"] is None  # not a number is no JSON
    assert find_record(record["id"], store) == record


def test_run_that_another_process_trains_is_left_to_it(store):
    item = tiny()
    (store / item.id).mkdir(parents=True)
    with FileLock(store / item.id / "lock"):
        assert workers.execute(item, store=store, device="cpu") is None
    assert workers.execute(item, store=store, device="cpu") is not None


def test_half_written_record_is_trained_again(store):
    first = workers.execute(tiny(), store=store, device="cpu")
    path = store / tiny().id / "record.json"
    path.write_text(path.read_text()[:100])
    with pytest.warns(UserWarning, match=r"record.json is damaged .* will be trained again"):
        again = workers.execute(tiny(), store=store, device="cpu")
    assert again["metrics"] == first["metrics"]


def test_full_disk_is_an_error_that_leaves_no_record(store, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "atomic_write", full)
    with pytest.raises(OSError, match="No space left on device"):
        workers.execute(tiny(), store=store, device="cpu")
    assert find_record(tiny().id, store) is None


def test_shipped_records_come_first_unless_fresh(store):
    mine = workers.execute(tiny(), store=store, device="cpu")
    records.ship("01_rigl", [mine | {"metrics": {"test_accuracy": 0.77}}])
    assert engine.run([tiny()], progress=False)[0]["metrics"] == {"test_accuracy": 0.77}
    assert engine.run([tiny()], fresh=True, progress=False) == [mine]


def test_without_training_there_are_the_records_that_there_are(store):
    second, first = (workers.execute(tiny(seed), store=store, device="cpu") for seed in (1, 0))
    plan = [tiny(0), tiny(2), tiny(1)]
    assert engine.run(plan, train=False) == [first, second]
    assert names(store) == sorted([tiny(0).id, tiny(1).id])


def test_parents_come_before_children_and_once():
    parent = tiny()
    child = Run("rigl", {}, 0, (parent,))
    grandchild = Run("rigl", {}, 1, (Run("rigl", {}, 0, (parent,)),))
    assert engine.with_parents([grandchild, child, parent]) == [parent, child, grandchild]


def test_plan_is_trained_by_workers_and_returned_in_its_order(store):
    plan = [tiny(seed=2), tiny(seed=0), tiny(seed=1, density=0.5)]
    result = engine.run(plan, device="cpu", jobs=2, progress=False)
    assert [record["id"] for record in result] == [item.id for item in plan]
    assert {record["provenance"]["threads"] for record in result} == {1}
    assert sorted(names(store)) == sorted(item.id for item in plan)
    assert multiprocessing.active_children() == []


def test_failed_run_is_named_and_the_others_finish(store):
    plan = [tiny(seed=0), tiny(seed=1, model="nonsense"), tiny(seed=2)]
    with pytest.raises(engine.RunFailed, match=r"^1 of 3 runs failed, the others are on record:\n.*nonsense"):
        engine.run(plan, device="cpu", jobs=1, progress=False)
    assert find_record(plan[0].id, store) and find_record(plan[2].id, store)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("n_there", [0, 1])
def test_missing_images_are_all_named_once_before_any_run_is_trained(n_there, store, monkeypatch):
    monkeypatch.setattr(paths, "DATA", store.parent)
    missing = [tiny(seed, dataset=name) for name in ("zoo", "imagenet") for seed in (1, 2)]
    plan = [tiny(seed) for seed in range(n_there)] + missing
    with pytest.raises(data.DatasetNotFoundError) as caught:
        engine.run(plan, device="cpu", jobs=1, progress=False)
    first, zoo, imagenet = str(caught.value).splitlines()
    assert first == f"nothing is trained: 4 of {4 + n_there} runs need images that are missing: zoo, imagenet"
    assert f"put it into {store.parent} as one of zoo/, zoo.tar.xz" in zoo and "'smoke'" in zoo
    assert f"there is no folder {store.parent / 'imagenet'}" in imagenet
    assert not store.exists()
    if n_there:
        assert len(engine.run(plan[:1], device="cpu", jobs=1, progress=False)) == 1
    assert engine.run(missing, train=False) == []  # what is on record is shown without images


def in_background(function):
    """Runs a function in a thread and keeps what it returned or raised."""
    outcome = {}

    def target():
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=target)
    thread.start()
    return thread, outcome


def test_killed_worker_costs_one_retry_and_nobody_else_anything(store, monkeypatch):
    victim, other = tiny(seed=0, n_epochs=150), tiny(seed=1)
    thread, outcome = in_background(lambda: engine.run([victim, other], device="cpu", jobs=1, progress=False))
    wait_until((store / victim.id / "progress").exists)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    thread.join(120)
    assert [record["status"] for record in outcome["result"]] == ["finished", "finished"]


def test_worker_that_dies_with_nothing_to_do_is_replaced(store):
    pool = engine._Pool(engine.Schedule([tiny()]), store=store, device="cpu", n_workers=1, slots=1)
    pool.workers[0].process.kill()
    pool.workers[0].process.join()
    assert pool.train(progress=False)[tiny().id]["status"] == "finished"
    assert pool.deaths == {}


def test_child_waits_for_its_parent_and_falls_with_it(store):
    parent = tiny(model="nonsense")
    child = Run("rigl", tiny().options, 0, (parent,))
    with pytest.raises(engine.RunFailed, match=r"^2 of 2 runs failed:\n(?s:.*)its parent failed"):
        engine.run([child], device="cpu", jobs=2, progress=False)


def chain():
    """Three rounds of a lottery, each the parent of the next."""
    first = tiny(method="lottery", density=1.0)
    second = make_child(first, density=0.5)
    return first, second, make_child(second, density=0.25)


def make_child(*parents, **changes):
    options = TINY | {"method": "lottery", "start": "ticket"} | changes
    return RIGL.run(seed=0, parents=parents, **options)


@pytest.fixture(scope="module")
def by_hand():
    """The results of the chain's runs, each executed with the state of the one before."""
    found, parents = [], []
    for item in chain():
        result = runner.execute(RIGL, item, device="cpu", parents=parents)
        parents = [result["state"]]
        found.append(result)
    return found


def test_chain_of_three_is_trained_as_by_hand_and_leaves_states_of_parents_only(store, by_hand):
    first, second, third = chain()
    trained = engine.run([third, first, second], device="cpu", jobs=2, progress=False)
    assert [record["id"] for record in trained] == [third.id, first.id, second.id]
    assert [record["parent"] for record in trained] == [second.id, None, first.id]
    for record, expected in zip(trained, (by_hand[2], by_hand[0], by_hand[1]), strict=True):
        for key in ("metrics", "curves", "layers", "moves", "units"):
            assert record[key] == expected[key]
    assert [(store / item.id / "state").exists() for item in chain()] == [True, True, False]
    # What a child starts from is what its parent ended with.
    handed_on = stores.load_state(second, store)
    for part in ("model", "masks", "start"):
        expected = getattr(by_hand[1]["state"], part)
        assert all(torch.equal(value, expected[name]) for name, value in getattr(handed_on, part).items())


def test_engine_killed_between_parent_and_child_trains_the_child_alone(store, by_hand):
    first, second, _ = chain()
    workers.execute(first, store=store, device="cpu", keep_state=True)
    files = [store / first.id / name for name in ("record.json", "state")]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    (child,) = engine.run([second], device="cpu", jobs=1, progress=False)
    assert child["metrics"] == by_hand[1]["metrics"] and child["parent"] == first.id
    assert before == [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]


def test_run_keeps_no_state_unless_it_is_asked_to(store):
    first, second, _ = chain()
    workers.execute(first, store=store, device="cpu", keep_state=True)
    assert names(store / first.id) == ["lock", "record.json", "state"]
    workers.execute(second, store=store, device="cpu")
    assert names(store / second.id) == ["lock", "record.json"]


def test_run_with_two_parents_starts_from_both_in_their_order(store):
    static, pruned = (tiny(method=method, density=0.2, update_every=1) for method in ("static", "gmp"))
    for parent in (static, pruned):
        workers.execute(parent, store=store, device="cpu", keep_state=True)
    line, turned = (
        workers.execute(make_child(*parents, method="dense", start="fresh", path="line"), store=store, device="cpu")
        for parents in ((static, pruned), (pruned, static))
    )
    assert line["parent"] == [static.id, pruned.id] and turned["parent"] == [pruned.id, static.id]
    assert find_record(line["id"], store) == line
    states = [stores.load_state(parent, store) for parent in (static, pruned)]
    for record, ends in ((line, states), (turned, states[::-1])):
        by_hand = runner.execute(
            RIGL, make_child(static, pruned, method="dense", start="fresh", path="line"), device="cpu", parents=ends
        )
        assert record["curves"] == by_hand["curves"] and record["metrics"] == by_hand["metrics"]
    assert line["curves"]["train_loss"][0] != turned["curves"]["train_loss"][0]


def test_only_ancestors_whose_state_is_missing_are_trained_for_a_child(store):
    first, second, third = chain()
    plan, record = engine.with_parents([third]), {}
    assert engine.to_train(plan, {}, store=store) == [first, second, third]
    done = {first.id: record, second.id: record}
    assert engine.to_train(plan, done, store=store) == [first, second, third]  # no state on this machine
    (store / second.id).mkdir(parents=True)
    stores.save_state(second, NO_STATE, store)
    assert engine.to_train(plan, done, store=store) == [third]  # the first is not needed
    assert engine.to_train(plan, done | {third.id: record}, store=store) == []
    between = make_child(first, third, method="dense", path="line")
    everything = done | {third.id: record}
    assert engine.to_train(engine.with_parents([between]), everything, store=store) == [first, third, between]


def altered(record):
    """As if trained elsewhere, long ago, with a number that no training here gives."""
    elsewhere = {"date": "2020-01-01T00:00:00+00:00", "device": "abacus"}
    return record | {"status": "diverged", "provenance": record["provenance"] | elsewhere}


def test_shipped_parent_is_trained_again_for_its_state_and_its_record_stays(store, tmp_path, by_hand):
    first, second, _ = chain()
    shipped = altered(workers.execute(first, store=tmp_path / "elsewhere", device="cpu"))
    records.ship("01_rigl", [shipped])
    before = (paths.RECORDS / "01_rigl.jsonl").read_bytes()
    parent, child = engine.run([first, second], device="cpu", jobs=1, progress=False)
    assert parent == shipped and engine.run([first], progress=False) == [shipped]
    assert (paths.RECORDS / "01_rigl.jsonl").read_bytes() == before
    assert child["metrics"] == by_hand[1]["metrics"] and (store / first.id / "state").exists()


@pytest.mark.parametrize("damage", ["absent", "a byte", "cut short"])
def test_local_parent_without_a_whole_state_is_trained_again_and_its_record_stays(damage, store, by_hand):
    first, second, _ = chain()
    records.save(altered(workers.execute(first, store=store, device="cpu", keep_state=True)), store)
    recorded = find_record(first.id, store)
    state = store / first.id / "state"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "absent":
        state.unlink()
    else:
        state.write_bytes(content if damage == "a byte" else content[:100])
        with pytest.warns(UserWarning, match=rf"{first.id}/state is damaged: .*; its run will be trained again"):
            assert engine.to_train(engine.with_parents([second]), {first.id: {}}, store=store) == [first, second]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as seen above
        assert workers.execute(first, store=store, device="cpu", keep_state=True) == recorded
    child = workers.execute(second, store=store, device="cpu")
    assert child["metrics"] == by_hand[1]["metrics"] and child["curves"] == by_hand[1]["curves"]
    assert find_record(first.id, store) == recorded


def test_damaged_state_is_named_and_made_whole_before_the_child_is_trained(store, by_hand):
    first, second, _ = chain()
    workers.execute(first, store=store, device="cpu", keep_state=True)
    state = store / first.id / "state"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match=rf"{first.id}/state is damaged"):
        parent, child = engine.run([first, second], device="cpu", jobs=1, progress=False)
    assert parent["metrics"] == by_hand[0]["metrics"] and child["metrics"] == by_hand[1]["metrics"]
    load_checkpoint(state)  # whole again


def test_parent_killed_after_its_state_and_before_its_record_is_trained_again(store):
    first, second, _ = chain()
    workers.execute(first, store=store, device="cpu", keep_state=True)
    (store / first.id / "record.json").unlink()
    missing = engine.to_train(engine.with_parents([second]), stores.on_record([first, second]), store=store)
    assert missing == [first, second]


def test_older_record_gets_the_options_that_came_since_with_their_defaults(store):
    record = workers.execute(tiny(), store=store, device="cpu")
    since = ("rewind_epochs", "path", "equal")
    older = record | {"options": {name: value for name, value in record["options"].items() if name not in since}}
    for keep in (lambda: records.ship("01_rigl", [older]), lambda: records.save(older, store)):
        keep()
        assert stores.on_record([tiny()]) == {tiny().id: record}
        assert engine.run([tiny()], progress=False) == [record]


def untrained(run):
    """A record of the run without any number."""
    record = {
        "format": records.FORMAT,
        "id": run.id,
        "recipe": run.recipe,
        "options": RIGL.defaults | dict(run.options),
    }
    record |= {"seed": run.seed, "parent": run.parent_ids, "status": "finished", "layers": []}
    return record | {"metrics": {}, "curves": {}, "provenance": {}}


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "foreign"},
        {"recipe": "rethinking"},
        {"seed": 1},
        {"parent": "a" * 16},
        {"parent": ["a" * 16, "b" * 16]},
        {"options": {"drop_fraction": 0.123}},  # recorded, so today's default does not replace it
        {"options": {"density": 0.123}},
        {"options": {"unheard_of": 1}},
    ],
)
def test_record_whose_id_does_not_follow_from_it_is_named_and_left_aside(changes, store):
    made = untrained(tiny())
    wrong = made | changes | {"options": made["options"] | changes.get("options", {})}
    records.save(made, store)
    records.ship("01_rigl", [wrong])
    with pytest.warns(UserWarning, match=f"record {tiny().id} is not of rigl .*left aside"):
        assert stores.on_record([tiny()]) == {tiny().id: made}  # the right one is found beside it
    records.save(wrong, store)
    with pytest.warns(UserWarning, match=f"record {tiny().id} is not of rigl .*left aside"):
        assert stores.on_record([tiny()], fresh=True) == {}


def test_run_is_trained_again_where_its_record_is_of_another(store):
    record = workers.execute(tiny(), store=store, device="cpu")
    records.save(record | {"seed": 1, "metrics": {}}, store)
    with pytest.warns(UserWarning, match="left aside"):
        again = workers.execute(tiny(), store=store, device="cpu")
    assert again["metrics"] == record["metrics"] and find_record(tiny().id, store) == again


def test_list_of_parents_is_held_by_the_order_of_their_ids(store):
    child = make_child(tiny(0), tiny(1), method="dense", path="line")
    made = untrained(child)
    records.save(made, store)
    assert stores.on_record([child]) == {child.id: made}
    records.save(made | {"parent": child.parent_ids[::-1]}, store)
    with pytest.warns(UserWarning, match="left aside"):
        assert stores.on_record([child]) == {}


def test_child_without_its_parents_state_is_an_error_that_leaves_no_record(store):
    _, second, _ = chain()
    with pytest.raises(FileNotFoundError, match="state"):
        workers.execute(second, store=store, device="cpu")
    assert find_record(second.id, store) is None


@pytest.mark.gpu
def test_run_on_a_gpu_is_recorded_as_such(store):
    record = workers.execute(tiny(method="rigl", model="resnet8"), store=store, device="cuda")
    assert record["status"] == "finished" and record["provenance"]["device"] != "cpu"


@pytest.mark.gpu
def test_runs_that_share_a_gpu_give_the_numbers_that_they_give_alone(store, tmp_path):
    plan = [tiny(seed, method=method, model="resnet8") for seed in (0, 1) for method in ("rigl", "set")]
    together = engine.run(plan, device="cuda", progress=False, store=store)
    for item, record in zip(plan, together, strict=True):
        alone = workers.execute(item, store=tmp_path / "alone", device="cuda")
        for key in ("metrics", "curves", "layers", "moves"):
            assert record[key] == alone[key], key


def test_record_is_the_same_alone_and_beside_neighbours_that_diverge_fail_and_die(store, tmp_path):
    item = tiny(5, method="rigl", density=0.2, n_epochs=6)
    (alone,) = engine.run([item], device="cpu", jobs=1, progress=False, store=tmp_path / "alone")
    diverging = [tiny(seed, learning_rate=1e30, n_epochs=6) for seed in (0, 1)]
    plan = [tiny(2, density=2.0), *diverging, item, tiny(3, method="rigl"), tiny(4, model="nonsense")]
    with pytest.raises(engine.RunFailed, match="2 of 6 runs failed"):
        engine.run(plan, device="cpu", jobs=2, progress=False, store=store)
    beside = find_record(item.id, store)
    for key in ("status", "metrics", "curves", "layers", "moves"):
        assert beside[key] == alone[key], key
    assert [find_record(run.id, store)["status"] for run in diverging] == ["diverged"] * 2


def test_run_that_kills_its_workers_is_given_up_and_the_others_finish(store):
    victim, other = long_run(seed=0), tiny(seed=1)
    thread, outcome = in_background(lambda: engine.run([victim, other], device="cpu", jobs=1, progress=False))
    for _ in range(2):
        wait_until((store / victim.id / "progress").exists)
        (worker,) = multiprocessing.active_children()
        (store / victim.id / "progress").unlink()
        wait_until((store / victim.id / "progress").exists)
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda pid=worker.pid: pid not in [child.pid for child in multiprocessing.active_children()])
        (store / victim.id / "progress").unlink(missing_ok=True)
    thread.join(120)
    assert isinstance(outcome["error"], engine.RunFailed)
    assert "worker was killed 2 times" in str(outcome["error"]) and victim.id in str(outcome["error"])
    assert find_record(other.id, store)


def test_worker_that_dies_as_it_starts_is_started_once_more_and_its_run_is_not_blamed(store):
    pool = engine._Pool(engine.Schedule([tiny(0), tiny(1)]), store=store, device="cpu", n_workers=1, slots=1)
    pool._give_out()
    pool.workers[0].process.kill()
    assert len(pool.train(progress=False)) == 2 and pool.deaths == {}


@pytest.mark.parametrize(
    "name, said",
    [
        ("train.py", "which calls engine.run; put the call under"),
        ("-", "and <stdin> is no file; save it as one, with the call of engine.run under"),
    ],
)
def test_script_that_workers_cannot_import_is_told_what_it_lacks(name, said, tmp_path):
    script = "from prunelab import engine\nfrom prunelab.recipes import RIGL\n"
    script += f"engine.run([RIGL.run(seed=0, method='static', **{TINY})], device='cpu', progress=False)\n"
    (tmp_path / "train.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT / "lib"), "PRUNELAB_DATA": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, name], input=script, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    *_, last = done.stderr.splitlines()
    assert last == f'RuntimeError: workers import the script, {said} `if __name__ == "__main__":`'
    assert done.stderr.count("Traceback") == 1


def test_all_workers_killed_as_they_start_are_told_apart_from_a_run_that_kills_them(store, monkeypatch):
    def killed(number, **options):
        worker = workers.Worker(number, **options)
        worker.process.kill()
        return worker

    pool = engine._Pool(engine.Schedule([tiny()]), store=store, device="cpu", n_workers=1, slots=1)
    pool.workers[0].process.kill()
    monkeypatch.setattr(pool, "new_worker", functools.partial(killed, store=store, device="cpu"))
    with pytest.raises(
        RuntimeError, match=r"no worker could start: .* exit code -9, killed; out of memory\? Try fewer"
    ):
        pool.train(progress=False)
    assert pool.deaths == {} and multiprocessing.active_children() == []


def test_run_whose_folder_is_anothers_stops_the_plan_before_it_begins(store):
    plan = [tiny(seed) for seed in range(3)]
    store.mkdir(parents=True)
    (store / plan[1].id).touch()
    refused = pytest.raises(OSError, match=f"^nothing can be written into {store / plan[1].id} ")
    with refused, pytest.warns(UserWarning, match="cannot be read"):
        engine.run(plan, device="cpu", jobs=1, progress=False)
    assert names(store) == [plan[1].id]


def test_two_engines_on_one_store_train_each_run_once(store):
    plan = [tiny(seed=seed) for seed in range(4)]
    engines = [
        in_background(lambda order=order: engine.run(order, device="cpu", jobs=1, progress=False))
        for order in (plan, plan[::-1])
    ]
    for thread, _ in engines:
        thread.join(120)
    first, second = (outcome["result"] for _, outcome in engines)
    # Seconds and dates differ between two trainings of one run.
    assert first == second[::-1]


def engine_process(store):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
    engine.run([long_run()], device="cpu", jobs=1, progress=False, store=store)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_engine_leaves_no_worker_and_a_whole_store(store, signal_number):
    process = multiprocessing.get_context("spawn").Process(target=engine_process, args=(store,))
    process.start()
    progress = store / long_run().id / "progress"
    wait_until(progress.exists)
    os.kill(process.pid, signal_number)
    process.join(30)
    assert process.exitcode != 0
    time.sleep(1.0)
    if progress.exists():  # no worker goes on writing it
        before = progress.stat().st_mtime_ns
        time.sleep(1.5)
        assert progress.stat().st_mtime_ns == before
    assert records.local(store) == []
    with FileLock(store / long_run().id / "lock", timeout=0):
        pass  # and none holds the run


def test_verify_trains_again_and_compares(store):
    plan = [tiny(seed=seed) for seed in range(3)]
    trained = engine.run(plan, device="cpu", jobs=1, progress=False)
    altered = trained[1] | {"metrics": trained[1]["metrics"] | {"test_accuracy": 0.999}}
    records.ship("01_rigl", [trained[0], altered])
    older = {name: value for name, value in trained[2]["metrics"].items() if name != "measured_density"}
    records.save(trained[2] | {"metrics": older})  # from before this was measured
    comparisons = engine.verify(plan, sample=3, seed=0, device="cpu", jobs=1)
    assert {c["run"].seed: c["equal"] for c in comparisons} == {0: True, 1: False, 2: True}
    assert names(store.parent) == ["runs"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"device": "tpu"}, "unknown device 'tpu'; there are auto, cpu, cuda"),
        ({"engine": "slurm"}, "unknown engine 'slurm'; there are local, ray"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
    ],
)
def test_impossible_requests_are_refused(arguments, message, store):
    with pytest.raises(ValueError, match=message):
        engine.run([tiny()], **arguments)


def test_engine_whose_extra_is_not_installed_says_how_to_get_it(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "prunelab.ray_workers", raising=False)
    monkeypatch.delattr(prunelab, "ray_workers", raising=False)
    with pytest.raises(RuntimeError, match=r"engine 'ray' needs the extra: pip install 'prunelab\[cluster\]'"):
        engine.run([tiny()], engine="ray", progress=False)
    assert not names(store)


def test_nothing_on_record_cannot_be_verified(store):
    with pytest.raises(ValueError, match="cannot draw 2 runs from 0 on record"):
        engine.verify([tiny()], sample=2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"density": 90.0}, r"density must lie in \(0, 1\]"),
        ({"model": "vgg99"}, "unknown model 'vgg99'"),
        ({"distribution": "normal"}, "unknown distribution 'normal'"),
        ({"schedule": "up"}, "unknown learning-rate schedule 'up'"),
        ({"decay": "up", "method": "rigl"}, "unknown decay 'up'"),
        ({"dataset": "nonsense"}, "nonsense"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_every": 0}, "eval_every must be at least 1, got 0"),
    ],
)
def test_option_that_names_nothing_is_a_clear_error(changes, message, store):
    with pytest.raises(ValueError, match=message):
        workers.execute(tiny(**changes), store=store, device="cpu")


def test_long_lines_of_descent_start_first_and_parents_stay_before_children():
    single, mother, other = tiny(0), tiny(1), tiny(2)
    daughter = RIGL.run(seed=1, parents=(mother,))
    granddaughter = RIGL.run(seed=2, parents=(daughter,))
    cousin = RIGL.run(seed=3, parents=(other,))
    plan = [single, mother, daughter, granddaughter, other, cousin]
    schedule, started = engine.Schedule(plan), []
    while item := schedule.next_ready():
        started.append(item)
        schedule.finished(item.id)
    assert started == [mother, daughter, other, single, granddaughter, cousin] and schedule.n_left == 0


def child_of(*parents, seed=0):
    return Run("rigl", {}, seed, parents)


def test_run_is_ready_once_the_last_of_its_parents_has_finished():
    parents = tiny(0), tiny(1)
    child = child_of(*parents)
    schedule = engine.Schedule([*parents, child])
    assert {schedule.next_ready(), schedule.next_ready()} == set(parents) and schedule.next_ready() is None
    schedule.finished(parents[1].id)
    assert schedule.next_ready() is None
    schedule.finished(parents[0].id)
    assert schedule.next_ready() == child and schedule.next_ready() is None
    assert engine.Schedule([child]).next_ready() == child  # its parents are on record


def test_all_descendants_of_a_failed_run_fall_with_it_once_and_nobody_else():
    failing, other = tiny(0), tiny(1)
    left, right = child_of(failing, seed=1), child_of(other, failing, seed=2)
    grandchild, free = child_of(left, right), child_of(other, seed=3)
    schedule = engine.Schedule([failing, other, left, right, grandchild, free])
    schedule.failed(failing.id, "bad")
    assert schedule.failures == {failing.id: "bad"} | {
        item.id: f"{item}: its parent failed" for item in (left, right, grandchild)
    }
    assert schedule.n_left == 2
    schedule.finished(other.id)  # the last that `right` was waiting for
    assert [schedule.next_ready() for _ in range(3)] == [failing, other, free]
    assert schedule.next_ready() is None


def test_run_that_is_put_back_comes_again_after_its_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    first, second = tiny(0), tiny(1)
    schedule = engine.Schedule([first, second])
    schedule.later(schedule.next_ready().id, 2.0)
    assert schedule.next_ready() == second and schedule.next_ready() is None
    now[0] = 2.0
    assert schedule.next_ready() == first


def test_work_for_a_thousand_children_of_one_parent_grows_with_their_number_only(store, monkeypatch):
    parent = tiny()
    (store / parent.id).mkdir(parents=True)
    stores.save_state(parent, NO_STATE, store)
    counts = Counter()

    def count(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: counts.update([name]) or function(*args))

    count(Run, "canonical")
    count(stores, "load_checkpoint")
    count(engine.heapq, "heappop")
    plan = [child_of(Run(parent.recipe, parent.options, parent.seed), seed=seed) for seed in range(1000)]
    missing = engine.to_train(plan, {parent.id: {}}, store=store)
    schedule = engine.Schedule(missing)
    while item := schedule.next_ready():
        schedule.finished(item.id)
    assert missing == plan and schedule.n_left == 0
    # Each of the thousand parents is an object of its own here, as a plan may have them.
    assert counts == {"canonical": 2000, "load_checkpoint": 1, "heappop": 1000}


def test_a_long_line_of_descent_is_hashed_once(monkeypatch):
    counts = Counter()
    canonical = Run.canonical
    monkeypatch.setattr(Run, "canonical", lambda run: counts.update([id(run)]) or canonical(run))
    line = [tiny()]
    for seed in range(200):
        line.append(child_of(line[-1], seed=seed))
    assert engine.with_parents(line) == engine.with_parents(line[::-1]) == line and len(set(line)) == 201
    assert set(counts.values()) == {1} and len(counts) == 201


class Killed(BaseException):
    """Ends a fake worker as SIGKILL ends a process."""


class FakeWorker(workers.Worker):
    """A worker in a thread, whose runs count to three and leave a line at each step; its pipe ends when it dies."""

    lines: ClassVar[list] = []  # what was trained at each step: the number of the process, and the seed
    all_given_out = threading.Event()  # so that those that are to share a worker are all there at its first step

    def __init__(self, number, *, store, device, n_gpus):
        self.pipe, theirs = multiprocessing.Pipe()
        self.number, self.store, self.is_up, self.in_hand, self.is_reserved = number, store, True, {}, False
        self.process = len({line[0] for line in self.lines})
        threading.Thread(target=self.serve, args=(theirs,), daemon=True).start()

    def serve(self, pipe):
        with pipe, suppress(Killed, EOFError, torch.OutOfMemoryError):
            workers.take_turns(pipe, self.executing)

    def executing(self, item, *, keep_state):
        for step in range(3):
            self.all_given_out.wait()
            self.lines.append((self.process, item.seed))
            if step == 1 and (how := item.options.get("dies")):
                raise {"killed": Killed, "memory": torch.OutOfMemoryError, "error": ValueError}[how](f"no {how}")
            time.sleep(0.02)  # longer than a bar takes to be drawn
            yield
        return {"id": item.id}

    n_done = 0.0

    def kill(self):
        self.pipe.close()


def fake_pool(monkeypatch, plan, **options):
    monkeypatch.setattr(workers, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "lines", [])
    pool = engine._Pool(engine.Schedule(plan), store=paths.RUNS, device="cpu", **options)
    give_out = pool._give_out

    def gated_give_out():
        FakeWorker.all_given_out.clear()
        give_out()
        FakeWorker.all_given_out.set()

    monkeypatch.setattr(pool, "_give_out", gated_give_out)
    return pool


@pytest.mark.parametrize("how", ["killed", "memory"])
def test_after_a_shared_worker_dies_its_runs_are_tried_alone_and_only_the_one_that_kills_is_given_up(
    how, store, monkeypatch
):
    first, killer, last = (Run("rigl", {"dies": how if seed == 1 else None}, seed) for seed in range(3))
    later = [Run("rigl", {}, seed) for seed in (3, 4, 5)]
    pool = fake_pool(monkeypatch, [first, killer, last, *later], n_workers=1, slots=3)
    with pytest.raises(engine.RunFailed, match=rf"1 of 6 runs failed(?s:.*){killer.id}.*killed 2 times; out of memory"):
        pool.train(progress=False)
    assert pool.done.keys() == {item.id for item in (first, last, *later)}
    assert pool.deaths == {killer.id: 2}  # the death that they shared counts against nobody
    by_process = [[seed for process, seed in FakeWorker.lines if process == number] for number in range(4)]
    assert set(by_process[0]) == {0, 1, 2}
    assert by_process[1] == [0, 0, 0, 1, 1] and by_process[2] == [1, 1]  # alone
    assert by_process[3][:3] == [2, 2, 2]
    assert sorted(by_process[3][3:]) == [3, 3, 3, 4, 4, 4, 5, 5, 5] != by_process[3][3:]  # in turn again


def test_error_of_a_run_costs_those_that_share_its_worker_nothing(store, monkeypatch):
    plan = [Run("rigl", {"dies": "error" if seed == 1 else None}, seed) for seed in range(3)]
    pool = fake_pool(monkeypatch, plan, n_workers=1, slots=3)
    with pytest.raises(engine.RunFailed, match=r"1 of 3 runs failed(?s:.*)seed=1 .*ValueError: no error"):
        pool.train(progress=False)
    assert len(pool.done) == 2 and {process for process, _ in FakeWorker.lines} == {0}
    assert [seed for _, seed in FakeWorker.lines].count(0) == 3


def test_runs_spread_over_the_workers_before_they_share_one(store, monkeypatch):
    pool = fake_pool(monkeypatch, [Run("rigl", {}, seed) for seed in range(5)], n_workers=2, slots=2)
    pool._give_out()
    assert [sorted(item.seed for item in worker.in_hand.values()) for worker in pool.workers] == [[0, 2], [1, 3]]
    assert len(pool.train(progress=False)) == 5


def test_run_to_be_tried_alone_waits_for_a_worker_with_nothing_in_hand_and_the_others_go_on(store, monkeypatch):
    plan = [Run("rigl", {}, seed) for seed in range(5)]
    pool = fake_pool(monkeypatch, plan, n_workers=2, slots=2)
    pool.suspects.extend([pool.schedule.next_ready(), pool.schedule.next_ready()])
    pool.workers[1].start(pool.schedule.next_ready(), keep_state=False, is_reserved=False)
    pool._give_out()
    assert [[item.seed for item in worker.in_hand.values()] for worker in pool.workers] == [[0], [2, 3]]
    assert pool.suspects == deque([plan[1]])
    assert len(pool.train(progress=False)) == 5


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_drawn_at_a_terminal_and_two_lines_in_a_log(is_terminal, store, monkeypatch, capsys):
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.01)
    pool = fake_pool(monkeypatch, [Run("rigl", {}, seed) for seed in range(5)], n_workers=1, slots=1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    pool.train(progress=True)
    written = capsys.readouterr().err
    if is_terminal:
        assert "0/5" in written and written.count("/5") > 2
    else:
        assert written.splitlines() == ["5 runs to train", "5 of 5 runs in 00:00"]


def test_state_of_an_earlier_version_is_named_and_its_run_trained_again(store, by_hand):
    first, second, _ = chain()
    workers.execute(first, store=store, device="cpu", keep_state=True)
    save_checkpoint({"model": {}, "masks": None, "start": {}}, store / first.id / "state")
    with pytest.warns(UserWarning, match=rf"{first.id}/state is of an earlier version; its run will be trained again"):
        assert engine.to_train([second], {first.id: {}}, store=store) == [first, second]


def test_verify_understands_the_words_of_older_records(store):
    record = workers.execute(tiny(), store=store, device="cpu")
    metrics = {name: value for name, value in record["metrics"].items() if name[:2] != "n_" or name == "n_active"}
    older = metrics | {"n_weights": record["metrics"]["n_reference_weights"], "total_training_macs_ratio": 1.0}
    records.save(record | {"metrics": older}, store)
    (compared,) = engine.verify([tiny()], sample=1, device="cpu", jobs=1)
    assert compared["equal"]


def test_path_is_recorded_and_told_to_be_no_parent(store):
    static, pruned = (tiny(method=method, density=0.2, update_every=1) for method in ("static", "gmp"))
    path = make_child(static, pruned, method="dense", start="fresh", path="line")
    with pytest.raises(engine.RunFailed, match="trains no network, so no other run can start from it"):
        engine.run([make_child(path, method="static")], device="cpu", jobs=1, progress=False)
    assert stores.on_record([path], store=store)


def test_state_that_cannot_be_read_is_named_and_its_run_trained_again(store):
    first, second, _ = chain()
    (store / first.id / "state").mkdir(parents=True)
    with pytest.warns(UserWarning, match="state.*its run will be trained again"):
        assert engine.to_train([second], {first.id: {}}, store=store) == [first, second]
