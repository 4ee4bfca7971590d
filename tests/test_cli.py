"""The command line, over an engine that trains nothing."""

import argparse
import json
import re

import pytest
from filelock import FileLock

from prunelab import batch, bench, cli, engine, forecast, paths, recipes, records, workers
from prunelab.data import DatasetNotFoundError
from prunelab.forecast import Calibration, Timing, Workload
from prunelab.recipes import runner
from prunelab.runs import Run, describe

RIGL_OPTIONS = describe(recipes.RIGL.options)
PLAN = [Run("toy", {}, seed) for seed in (0, 1)]


class Toy(argparse.Namespace):
    """A recipe of two runs."""

    notebook, defaults = "01_toy", {"model": "m"}

    @staticmethod
    def options_of(run):
        return argparse.Namespace(dataset="imagenet")

    @staticmethod
    def plan(profile, *, seeds=None):
        if profile not in ("smoke", "small"):
            raise ValueError(f"unknown profile {profile!r}; there are smoke, small")
        return [Run("toy", {"n_epochs": 9} if profile == "small" else {}, seed) for seed in seeds or (0, 1)]


def foretell(recipe, run):
    size = {"macs": 10**9, "n_steps": 20, "n_evaluated": 0, "n_weights": 10**8}
    return Workload("resnet8", 1.0, 10, 3, 32, "sgd", batch_size=100, **size)


def record(run: Run, **changes) -> dict:
    made = {
        "format": records.FORMAT,
        "id": run.id,
        "recipe": "toy",
        "options": {"model": "m"} | dict(run.options),
        "seed": run.seed,
    }
    made |= {"parent": None, "status": "finished", "curves": {}, "layers": [], "moves": {}}
    made |= {"metrics": {"test_accuracy": 0.5, "training_macs": 1e12}}
    made |= {"provenance": {"device": "cpu", "seconds": 120.0}}
    return made | changes


def set_recipes(monkeypatch, **known):
    for name in ("RECIPES", "STUDIES"):
        monkeypatch.setattr(recipes, name, known)


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    for folder in ("RUNS", "RECORDS", "FIGURES", "NOTEBOOKS"):
        monkeypatch.setattr(paths, folder, tmp_path / folder.lower())
    set_recipes(monkeypatch, toy=Toy())
    monkeypatch.setattr(recipes, "PROFILES", ("smoke", "small"))
    monkeypatch.setattr(runner, "forecast", foretell)
    return tmp_path


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def asked(monkeypatch):
    """What the forecast, which measures nothing here, is asked to measure."""
    calls = []

    def calibrate(workloads, **options):
        calls.append((len(workloads), options))
        timings = {workload.kind: [Timing(10**9, step=6.0, test=1.0)] for workload in workloads}
        return Calibration(timings, start_seconds=3.0)

    monkeypatch.setattr(forecast, "calibrate", calibrate)
    return calls


def test_plan_says_what_is_left_and_how_long_it_takes_here(capsys, monkeypatch, asked):
    monkeypatch.setattr(forecast, "H200_MACS", 1e9)
    records.save(record(PLAN[0]))
    assert cli.main(["plan", "--device", "cpu", "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    rows = cells(printed.out)
    # A run is 20 steps of 6 seconds and 3 * 20 * 100 * 1e9 MACs.
    # At 0.001 TMACs a second that is 12,000 seconds. ImageNet counts, though it is on no disk yet.
    assert rows[1] == ["01_toy", "smoke", "2", "12.00", "3.33", "154.6", "4.0", "1", "1", "2.0"]  # 3 seconds to start
    assert rows[2] == ["01_toy", "small", "2", "12.00", "3.33", "154.6", "4.0", "0", "2", "4.0"]
    assert asked == [(1, {"device": "cpu", "n_workers": 1, "slots": 1})]  # the same work four times
    assert "(cpu, 1 runs at once)" in printed.out and "measuring this machine" in printed.err


def test_plan_without_the_images_still_counts_the_runs(capsys, monkeypatch):
    def without_images(recipe, run):
        raise FileNotFoundError("put cifar10.tar.xz into data")

    monkeypatch.setattr(runner, "forecast", without_images)
    assert cli.main(["plan", "--profile", "smoke"]) == 0
    assert cells(capsys.readouterr().out)[1] == ["01_toy", "smoke", "2", *["unknown"] * 4, "0", "2", "unknown"]


def test_each_run_of_a_plan_is_forecast_by_its_own_recipe(capsys, monkeypatch):
    toy, other, asked = Toy(), Toy(notebook="02_other"), []

    def without_images(recipe, run):
        asked.append((recipe, run))
        if len(asked) == 2:
            raise FileNotFoundError("put cifar10.tar.xz into data")

    mixed = [Run("other"), Run("toy")]
    monkeypatch.setattr(toy, "plan", lambda profile, *, seeds: mixed, raising=False)
    set_recipes(monkeypatch, toy=toy, other=other)
    monkeypatch.setattr(runner, "forecast", without_images)
    assert cli.main(["plan", "01_toy", "--profile", "smoke"]) == 0
    assert [run for _, run in asked] == mixed and asked[0][0] is other and asked[1][0] is toy


def test_plan_tells_the_options_of_a_notebook_and_plans_nothing(capsys, monkeypatch):
    set_recipes(monkeypatch, rigl=recipes.RIGL)
    monkeypatch.setattr(engine, "with_parents", lambda plan: pytest.fail("planned"))
    assert cli.main(["plan", "--help-options", "01_rigl"]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == "01_rigl:"
    table = {name: about for name, *about in (re.split(r"\s{2,}", row.strip()) for row in rows)}
    assert table.keys() == RIGL_OPTIONS.keys()
    assert table["image_size"] == ["int or None", *map(str, RIGL_OPTIONS["image_size"][1:])]
    assert len({row.rindex(RIGL_OPTIONS[name][2]) for name, row in zip(table, rows, strict=True)}) == 1  # aligned


def test_run_hands_its_options_to_the_engine_and_ships_what_it_returns(capsys, monkeypatch):
    calls = []

    def run(plan, **options):
        calls.append((plan, options))
        return [record(item, status="diverged" if item.seed == 5 else "finished") for item in plan]

    monkeypatch.setattr(engine, "run", run)
    command = [
        "run",
        "01_toy",
        "--profile",
        "smoke",
        "--seeds",
        "4,5",
        "--fresh",
        "--jobs",
        "3",
    ]
    assert cli.main([*command, "--device", "cpu", "--ship"]) == 0
    [(plan, options)] = calls
    assert [item.seed for item in plan] == [4, 5]
    assert options == {"fresh": True, "device": "cpu", "jobs": 3, "engine": "local"}
    assert "2 runs on record, 1 of them diverged" in capsys.readouterr().out
    assert {shipped["seed"] for shipped in records.load("01_toy")} == {4, 5}


def test_status_counts_shipped_local_running_and_diverged(capsys):
    records.ship("01_toy", [record(PLAN[0], status="diverged")])
    records.save(record(PLAN[0]))
    folder = paths.RUNS / PLAN[1].id
    folder.mkdir(parents=True)
    (folder / "progress").write_text("0.5")
    assert cli.main(["status", "--profile", "smoke"]) == 0
    assert cells(capsys.readouterr().out)[1] == ["01_toy", "smoke", "2", "1", "1", "1", "0", "1"]
    with FileLock(folder / "lock"):
        cli.main(["status", "--profile", "smoke"])
    assert cells(capsys.readouterr().out)[1] == ["01_toy", "smoke", "2", "1", "1", "1", "1", "1"]


def test_status_reads_what_ships_once_for_all_profiles(capsys, monkeypatch):
    records.ship("01_toy", [record(PLAN[0])])
    read, load = [], records.load
    monkeypatch.setattr(records, "load", lambda notebook: read.append(notebook) or load(notebook))
    assert cli.main(["status"]) == 0
    assert len(cells(capsys.readouterr().out)) == 3 and read == ["01_toy"]


def test_verify_takes_the_largest_recorded_profile_and_fails_where_counts_are_far_apart(capsys, monkeypatch):
    asked = []
    trained = {"test_accuracy": 0.5, "training_macs": 1e12, "n_active": 100}

    def verify(plan, **options):
        asked.append((plan, options))
        return [{"run": plan[0], "recorded": recorded, "trained": record(plan[0], metrics=trained), "equal": equal}]

    monkeypatch.setattr(engine, "verify", verify)
    records.ship("01_toy", [record(item) for item in Toy.plan("small")])
    recorded, equal = record(PLAN[0], metrics=dict(trained)), True
    assert cli.main(["verify", "--sample", "1", "--draw", "7"]) == 0
    assert asked == [(Toy.plan("small"), {"sample": 1, "seed": 7, "device": "auto", "jobs": None})]
    assert "differ" not in capsys.readouterr().out
    trained["test_accuracy"], equal = 0.51, False
    assert cli.main(["verify"]) == 0
    assert "here they differ" in capsys.readouterr().out
    recorded["metrics"] |= {"n_weights": 100, "measured_density": 1.0}  # an older record's word for another thing
    trained |= {"n_stored_weights": 0, "n_reference_weights": 100, "measured_density": 1.0}
    assert cli.main(["verify"]) == 0
    trained["n_active"] = 80
    assert cli.main(["verify"]) == 0
    trained["n_active"] = 79
    assert cli.main(["verify"]) == 1
    assert "n_active 100 became 79" in capsys.readouterr().out


def test_figures_hands_only_what_was_asked_to_the_notebooks_and_tells_of_each(capsys, monkeypatch):
    calls, trained = [], []

    def execute_all(stems, *, parameters, timeout, report, at_once):
        calls.append((stems, parameters, timeout, at_once))
        report("01_toy", batch.NotebookFailed("01_toy, cell 3 (boom): no"), 1.0)
        report("02_toy", paths.FIGURES / "copy.ipynb", 12.0)

    def run(plan, *, fresh, device, **own):
        trained.append((plan, fresh, device, own["engine"]))
        raise (engine.RunFailed, DatasetNotFoundError)[len(trained) - 1]("one failed")  # its notebook says so

    monkeypatch.setattr(batch, "execute_all", execute_all)
    monkeypatch.setattr(batch, "stems", lambda: ["01_toy", "02_toy"])
    monkeypatch.setattr(batch, "declared", lambda notebook: {"profile": "'small'"})
    monkeypatch.setattr(engine, "run", run)
    monkeypatch.setattr(workers, "resolve_device", {"cpu": "cpu", "auto": "cuda"}.get)
    assert cli.main(["figures", "--timeout", "2"]) == 2
    assert calls == [(["01_toy", "02_toy"], {}, 120.0, None)] and not trained
    out, err = capsys.readouterr()
    assert "02_toy: 12 s" in out and "prunelab: 01_toy, cell 3 (boom): no" in err
    cli.main(["figures", "01_toy", "--profile", "smoke", "--fresh", "--seeds", "1,2", "--engine", "ray"])
    parameters = {"profile": "smoke", "device": "ray", "seeds": "1,2", "fresh": True}
    assert calls[-1] == (["01_toy"], parameters, 21600.0, None), "a cluster has its own GPUs"
    assert trained == [(Toy.plan("smoke", seeds=[1, 2]), True, "auto", "ray")]
    cli.main(["figures", "--fresh"])
    assert trained[-1] == (Toy.plan("small"), True, "auto", "local")
    assert calls[-1][-1] == 1, "notebooks that share a GPU run one after another"


def test_bench_judges_and_writes_only_what_is_measured_in_full(capsys, monkeypatch):
    fast, slow = (bench.row("a over b", ">= 1.5", values) for values in ([1.7, 1.4, 1.6], [1.2, 1.3, 1.9]))
    assert (fast["median"], fast["low"], fast["high"], fast["verdict"]) == (1.6, 1.4, 1.7, "met")
    assert bench.row("a over b", "<= 1.02", [1.03])["verdict"] == "missed by 0.010"
    unjudged = bench.row("a over b", "none", [0.4])
    assert unjudged["verdict"] == "measured"

    curves = [{"name": name, "x": "runs", "y": "seconds", "points": [[1, 2.0], [2, 1.5]]} for name in "abc"]
    rows = {"engine": [fast, slow]}
    monkeypatch.setattr(bench, "measure", lambda group, *, quick: rows.get(group, [unjudged]))
    monkeypatch.setattr(bench, "curves", lambda *, quick: curves)
    networks = [{"library": "torchvision", "network": "resnet18", "difference": 1e-9, "why": ""}]
    monkeypatch.setattr(bench, "networks", lambda *, quick: networks)
    times = [{"id": "0123456789abcdef", "time": 0.5, "sparse": None}]
    monkeypatch.setattr(bench, "times", lambda *, quick: times)
    monkeypatch.setattr(bench, "profile", lambda *, quick: {"convolution": 0.7, "all else": 0.3})
    assert cli.main(["bench", "--quick"]) == 0
    assert not paths.RECORDS.exists() and not paths.FIGURES.exists()
    assert cli.main(["bench"]) == 1
    printed = capsys.readouterr().out
    assert "1.30 x (1.20 to 1.90)" in printed and "seconds by runs: 1: 2, 2: 1.5" in printed
    assert "convolution 70%, all else 30%" in printed

    def written():
        return json.loads((paths.RECORDS / "bench.json").read_text())

    assert list(written()) == [
        "engine",
        "steps",
        "channels",
        "widths",
        "scores",
        "transfer",
        "surgery",
        "streaming",
        "scale",
        "cluster",
        "notebooks",
        "curves",
        "networks",
        "front",
    ]
    assert written()["engine"]["claims"] == [fast, slow] and written()["curves"]["curves"] == curves
    assert written()["networks"]["networks"] == networks and "torchvision" in written()["networks"]["versions"]
    assert written()["front"]["times"] == times
    assert {"processor", "cores", "torch", "commit"} <= written()["channels"]["provenance"].keys()
    assert (paths.FIGURES / "bench" / "cpu" / "curves.csv").read_text().splitlines()[:2] == ["curve,x,y", "a,1,2.0"]
    rows["engine"], rows["steps"] = [fast], [slow]
    assert cli.main(["bench", "engine"]) == 0
    assert written()["engine"]["claims"] == [fast] and written()["steps"]["claims"] == [unjudged]


def test_bench_names_the_groups_there_are(capsys):
    assert cli.main(["bench", "channel"]) == 2
    groups = ", ".join(bench.GROUPS) + ", curves, networks and front"
    assert f"unknown group 'channel' of measurements; there are {groups}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("seeds must be different"), 2, "prunelab: seeds must be different\n"),
        (FileNotFoundError("put cifar10.tar.xz into data"), 2, "prunelab: put cifar10.tar.xz into data\n"),
        (
            engine.RunFailed("1 failed:\nrun: bad\nTraceback (most recent"),
            2,
            "prunelab: 1 failed:\nrun: bad\n",
        ),
        (KeyboardInterrupt(), 130, "\nprunelab: stopped; start it again to go on from there\n"),
        (KeyboardInterrupt("stopped: 1 of 2"), 130, "\nprunelab: stopped: 1 of 2\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(capsys, monkeypatch, error, code, said):
    def run(*arguments, **options):
        raise error

    monkeypatch.setattr(engine, "run", run)
    assert cli.main(["run", "--profile", "smoke"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "command, said",
    [
        (["run", "--profile", "tiny"], "unknown profile 'tiny'; there are smoke, small"),
        (["figures", "--engine", "slurm"], "unknown engine 'slurm'; there are local, ray"),
        (
            ["figures", "--engine", "ray", "--device", "cpu"],
            "notebooks take the devices that a cluster has; leave out --device cpu",
        ),
        (["figures", "--profile", "tiny"], "unknown profile 'tiny'; there are smoke, small, full, paper"),
        (
            ["figures", "--profile", "Smoke", "--fresh"],
            "unknown profile 'Smoke'; there are smoke, small, full, paper. Did you mean 'smoke'?",
        ),
        (["figures", "01_toy", "09_none", "--fresh"], "unknown notebook '09_none'; there are 01_toy"),
        (["plan", "09_none"], "unknown notebook '09_none'; there are 01_toy"),
        (["plan", "01_tyo"], "unknown notebook '01_tyo'; there are 01_toy. Did you mean '01_toy'?"),
    ],
)
def test_unknown_name_is_answered_with_the_known_ones_before_anything_is_made(capsys, monkeypatch, command, said):
    monkeypatch.setattr(batch, "stems", lambda: ["01_toy"])
    assert cli.main(command) == 2
    assert capsys.readouterr().err == f"prunelab: {said}\n"
    assert not any(path.exists() for path in (paths.RUNS, paths.FIGURES))


@pytest.mark.parametrize("command", ["run --profile smoke", "figures", "status"])
def test_notebook_that_lies_elsewhere_is_not_taken_for_the_one_here(house, capsys, monkeypatch, command):
    monkeypatch.setattr(batch, "execute_all", lambda stems, **options: None)
    monkeypatch.setattr(batch, "stems", lambda: ["01_toy"])
    monkeypatch.setattr(engine, "run", lambda plan, **options: [])
    monkeypatch.chdir(house)
    for name in ("01_toy", "notebooks/01_toy.ipynb", f"{paths.NOTEBOOKS}/01_toy.ipynb"):
        assert cli.main([*command.split(), name]) == 0
    capsys.readouterr()
    for name in ("/elsewhere/01_toy.ipynb", "01_toy.ipynb", "elsewhere/01_toy"):
        assert cli.main([*command.split(), name]) == 2
        assert f"prunelab: {name} is no notebook of {paths.NOTEBOOKS}" in capsys.readouterr().err


def test_figures_that_have_nowhere_to_go_are_told_once_before_anything_is_trained(house, capsys, monkeypatch):
    paths.FIGURES.touch()
    monkeypatch.setattr(batch, "stems", lambda: ["01_toy", "02_toy"])
    monkeypatch.setattr(engine, "run", lambda plan, **options: pytest.fail("trained"))
    assert cli.main(["figures", "--profile", "smoke", "--fresh"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prunelab: nothing can be written into {paths.FIGURES} (") and "set PRUNELAB_DATA" in line


def test_damaged_record_is_a_line_of_warning(capsys):
    paths.RECORDS.mkdir()
    (paths.RECORDS / "01_toy.jsonl").write_text('{"form')
    assert cli.main(["status"]) == 0
    assert "prunelab: warning: 01_toy.jsonl line 1 is damaged" in capsys.readouterr().err


def test_records_that_are_no_text_foreign_or_without_options_stop_no_command(capsys, asked):
    records.ship("01_toy", [record(PLAN[0])])
    records.save(record(PLAN[0], recipe="foreign"))
    path = paths.RECORDS / "01_toy.jsonl"
    path.write_bytes(path.read_bytes() + b"\xff\n" + path.read_bytes().replace(b'{"model":"m"}', b"null"))
    assert cli.main(["status"]) == 0
    printed = capsys.readouterr()
    assert cells(printed.out)[1][:4] == ["01_toy", "smoke", "2", "1"]
    assert "01_toy.jsonl line 2 is damaged ('utf-8' codec" in printed.err
    assert "01_toy.jsonl line 3 is damaged" in printed.err
    assert cli.main(["plan", "--profile", "smoke", "--device", "cpu", "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    assert cells(printed.out)[1][-3:-1] == ["1", "1"]
    assert f"record {PLAN[0].id} is not of {PLAN[0]}" in printed.err


SEEDS = (
    "--seeds: seeds must be different whole numbers from 0 to 9223372036854775807, separated by commas, such as 0,1,2"
)
JOBS = "--jobs: jobs must be a whole number from 1 on"


@pytest.mark.parametrize(
    "command, said",
    [
        ("run --profile smoke --seeds a", f"{SEEDS}; got 'a'"),
        ("figures --seeds 0,-1", f"{SEEDS}; got '0,-1'"),
        ("status --seeds 1,1", f"{SEEDS}; got '1,1'"),
        ("plan --jobs 0", f"{JOBS}; got '0'"),
        ("verify --jobs two", f"{JOBS}; got 'two'"),
        ("run --profile smoke --seeds 99999999999999999999", f"{SEEDS}; got '99999999999999999999'"),
        ("figures --timeout -1", "--timeout: minutes must be a number above 0; got '-1'"),
        ("figures --timeout=-1", "--timeout: minutes must be a number above 0; got '-1'"),
        ("figures --timeout 1e308", "--timeout: minutes must be a number above 0; got '1e308'"),
        ("figures --timeout nan", "--timeout: minutes must be a number above 0; got 'nan'"),
    ],
)
def test_wrong_number_on_the_command_line_is_answered_with_what_is_expected(capsys, command, said):
    with pytest.raises(SystemExit):
        cli.main(command.split())
    assert capsys.readouterr().err.endswith(f"error: argument {said}\n")


@pytest.mark.parametrize("command", [[], ["run"], ["figures", "--seeds", "a"], ["train"]])
def test_wrong_command_line_exits_with_usage(capsys, command):
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 2
    assert "usage: prunelab" in capsys.readouterr().err
