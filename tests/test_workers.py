"""Workers: runs that take turns in one process, and what ends it."""

import multiprocessing
import os
import signal
import threading

import pytest
import torch

from prunelab import ranks, workers
from prunelab.recipes import RIGL, runner
from prunelab.runs import Run


@pytest.fixture
def pipe():
    """An end of a pipe, at the other end of which runs take turns; each has as many steps as its seed says."""
    ours, theirs = multiprocessing.Pipe()

    def executing(item, *, keep_state):
        both_are_there.wait(10)
        for step in range(item.seed):
            order.append((item.seed, step))
            yield
        if item.options:
            raise ValueError("bad")
        return {"steps": item.seed, "keep_state": keep_state}

    def serve():
        with theirs, pytest.raises(EOFError):  # when the test closes its end
            workers.take_turns(theirs, executing)

    order, both_are_there = [], threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    yield ours, order, both_are_there
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_runs_take_turns_step_by_step_and_each_answers_when_it_ends(pipe):
    pipe, order, both_are_there = pipe
    for seed in (4, 2):
        pipe.send((Run("toy", {}, seed), seed == 2))
    both_are_there.set()
    answers = [pipe.recv() for _ in range(2)]
    assert answers == [
        (Run("toy", {}, 2).id, {"steps": 2, "keep_state": True}),
        (Run("toy", {}, 4).id, {"steps": 4, "keep_state": False}),
    ]
    assert order in (
        [(4, 0), (2, 0), (4, 1), (2, 1), (4, 2), (4, 3)],
        [(4, 0), (4, 1), (2, 0), (4, 2), (2, 1), (4, 3)],  # the second came a turn later
    )


def test_error_is_told_with_its_run_and_the_next_one_is_trained(pipe):
    pipe, _, both_are_there = pipe
    both_are_there.set()
    bad = Run("toy", {"is": "bad"}, 2)
    for item in (bad, Run("toy", {}, 3)):
        pipe.send((item, False))
    told = dict(pipe.recv() for _ in range(2))
    assert told[bad.id].startswith(f"{bad}: ValueError: bad\nTraceback")
    assert told[Run("toy", {}, 3).id] == {"steps": 3, "keep_state": False}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError, ranks.RankDied])
def test_error_of_the_card_or_death_of_a_rank_ends_the_worker(error):
    ours, theirs = multiprocessing.Pipe()

    def executing(item, *, keep_state):
        yield
        raise error("CUDA error: an illegal memory access was encountered")

    ours.send((Run("toy"), False))
    with pytest.raises(error, match="illegal"):
        workers.take_turns(theirs, executing)


def test_interrupt_while_a_worker_starts_neither_ends_it_nor_prints(tmp_path, capfd):
    worker = workers.Worker(0, store=tmp_path, device="cpu")
    try:
        os.kill(worker.process.pid, signal.SIGINT)
        item = Run("rigl", {"dataset": "nonsense"})
        worker.start(item, keep_state=False, is_reserved=False)
        assert worker.pipe.poll(60) and worker.answer() is None and worker.is_up
        assert worker.pipe.poll(60)
        ended, answer = worker.answer()
        assert ended == item and "nonsense" in answer and worker.in_hand == {}
    finally:
        worker.kill()
    assert "Traceback" not in capfd.readouterr().err
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # this process is interrupted as before


def test_execution_pauses_while_it_holds_its_run_and_lets_go_at_its_end(tmp_path, monkeypatch):
    made = {"state": {}, "seconds": 1.0, "precision": "fp32", "dataset": {}, "status": "finished", "metrics": {}}
    made |= {"curves": {}, "layers": []}

    def executing(recipe, item, **options):
        yield
        return dict(made)

    monkeypatch.setattr(runner, "executing", executing)
    item = Run("rigl")
    turns = workers.executing(item, store=tmp_path, device="cpu")
    next(turns)
    assert workers.execute(item, store=tmp_path, device="cpu") is None
    for _ in turns:
        pass
    assert workers.execute(item, store=tmp_path, device="cpu")["options"] == RIGL.defaults


def test_a_gpu_has_one_worker_with_several_turns_and_a_cpu_a_worker_a_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert workers.default_jobs("cuda") == 16 and workers.default_jobs("cpu") == workers.n_cores()
    assert workers.share_out(16, "cuda") == (2, 8)
    assert workers.share_out(1, "cuda") == (1, 1)
    assert workers.share_out(4, "cpu") == (4, 1)


@pytest.mark.parametrize("device, n_gpus, expected", [("cpu", 0, 1), ("cuda", 1, 16), ("cuda", 3, 5), ("cuda", 32, 1)])
def test_a_worker_has_one_thread_or_its_share_of_the_cores_beside_a_gpu(monkeypatch, device, n_gpus, expected):
    said = []
    monkeypatch.setattr(workers, "n_cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", said.append)
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(workers, "take_turns", lambda pipe, executing: said.append("trains"))
    workers.serve(None, 7, None, device)
    assert said == [expected, *([7] if device == "cuda" else []), "trains"]
