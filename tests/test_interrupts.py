"""Ctrl-C as a terminal sends it, to a command and all that it started: one line, whoever was busy with what."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from prunelab import paths


@pytest.mark.parametrize(
    "command, begun, said",
    [
        (
            "run 01_rigl --profile smoke --seeds 0 --fresh",
            "runs/*/progress",
            r"stopped: \d+ of \d+ runs are on record now, those in hand keep what they had saved; "
            "start it again to go on from there",
        ),
        ("plan 01_rigl --profile smoke", "stderr", "stopped; start it again to go on from there"),
    ],
)
def test_stopped_command_says_one_line_and_its_workers_nothing(tmp_path, command, begun, said):
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT / "lib"), "PRUNELAB_DATA": str(tmp_path)}
    arguments = [sys.executable, "-m", "prunelab.cli", *command.split(), "--device", "cpu", "--jobs", "2"]
    with (tmp_path / "stderr").open("w+") as stderr:
        process = subprocess.Popen(
            arguments,
            stderr=stderr,
            env=environment,
            start_new_session=True,
            # Tests that a shell runs in the background ignore Ctrl-C, and so would what they start.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        end = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob(begun)):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
        time.sleep(1.0)  # workers are being started, or train
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
        stderr.seek(0)
        first, *more = stderr.read().splitlines()
    assert re.match(r"\d+ runs to train|measuring this machine", first)
    assert more[0] == "" and re.fullmatch(f"prunelab: {said}", more[1]) and not more[2:]
