"""Every command of the README is executed, in a copy of this checkout as a newcomer would have it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunelab import claims, paths, records, stores
from prunelab.models import build_model
from prunelab.recipes import RECIPES, RETHINKING, RIGL

# Numbers of a seed differ between kinds of processors as they do between seeds; means over seeds differ less.
TOLERANCE = 0.06

pytestmark = pytest.mark.slow


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", (paths.ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


# `make test` runs this very file; a clone and a virtual environment are there by then; the benchmark wants a machine
# of its own, and its quick form is executed.
EXECUTED_ELSEWHERE = ("git clone", "cd ", "make test", ". .venv/bin/activate")
COMMANDS = [command for command in commands() if not command.startswith(EXECUTED_ELSEWHERE)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files that git has or would have, and none of the data that this machine holds."""
    if not all(shutil.which(name, path=Path(sys.executable).parent) for name in ("prunelab", "papermill")):
        pytest.skip("prunelab is not installed beside this Python; make test installs it")
    copy = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "-C", paths.ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (paths.ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(paths.ROOT / name, copy / name)
    return copy


def run(command, checkout, *, folder=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PRUNELAB"))}
    installed = Path(sys.executable).parent
    environment |= {
        "PYTHONPATH": str(checkout / "lib"),  # the copy's library, not the one that is installed
        "PATH": f"{installed}{os.pathsep}{environment['PATH']}",
        "VENV": str(installed.parent),
    }
    (installed.parent / ".installed").touch()
    return subprocess.run(shlex.split(command), cwd=folder or checkout, env=environment, capture_output=True, text=True)


def test_readme_has_both_commands_for_newcomers():
    assert {"make figures", "make test"} <= set(commands())


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_readme_works(command, checkout):
    result = run(command, checkout)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_figures_are_all_drawn_from_records_and_trained_live(recipe, checkout):
    shipped = {path.relative_to(paths.FIGURES) for path in (paths.FIGURES / recipe.notebook / "small").glob("*.*")}
    drawn = {path.relative_to(checkout / "figures") for path in (checkout / "figures").rglob("*.*")}
    assert shipped and shipped <= drawn
    smoke = {Path(recipe.notebook, "smoke", path.name) for path in shipped}
    assert smoke <= drawn


def fresh_and_shipped(recipe, checkout):
    """The records of a smoke plan: those of the copy, and ours."""
    plan = {run.id for run in recipe.plan("smoke")}
    fresh = [record for record in records.local(checkout / "data" / "runs") if record["id"] in plan]
    shipped = [record for record in records.load(recipe.notebook) if record["id"] in plan]
    assert len(fresh) == len(shipped) == len(plan)
    return fresh, shipped


def test_fresh_predefined_networks_cost_what_the_shipped_ones_do(checkout):
    both = fresh_and_shipped(RETHINKING, checkout)
    given = [
        {r["id"]: records.metrics(r) for r in some if r["options"]["pruning"] in (None, "predefined")} for some in both
    ]
    for name in ("n_stored_weights", "macs", "training_macs", "n_epochs_trained", "n_steps"):
        assert all(own[name] == given[1][key][name] for key, own in given[0].items()), name


def test_fresh_smoke_runs_agree_with_the_shipped_records(checkout):
    fresh, shipped = fresh_and_shipped(RIGL, checkout)
    counted = ("macs", "training_macs", "n_steps", "n_batches")  # active weights of a ticket may move between layers
    for name in counted:
        both = [{record["id"]: record["metrics"].get(name) for record in some} for some in (fresh, shipped)]
        tickets = {record["id"] for record in shipped if record["options"]["method"] == "lottery" or record["parent"]}
        assert all(both[0][key] == both[1][key] for key in both[0] if key not in tickets), name
    main = {run.id for run in RIGL.experiments("smoke")["main"]}
    keys = ["method", "density", "distribution"]
    ours, theirs = (
        records.frame(record for record in some if record["id"] in main).groupby(keys)["test_accuracy"].mean()
        for some in (fresh, shipped)
    )
    assert (ours - theirs).abs().max() < TOLERANCE


def test_papermill_stops_at_a_mistyped_parameter_and_names_the_real_ones(checkout):
    result = run("papermill notebooks/01_rigl.ipynb out.ipynb -p profil smoke", checkout)
    assert result.returncode != 0
    assert re.search(r"no parameter 'profil'; there are profile, fresh, seeds.*Did you mean 'profile'", result.stderr)


def test_papermill_works_from_a_folder_outside(checkout, tmp_path):
    command = f"papermill {checkout}/notebooks/01_rigl.ipynb out.ipynb -p profile smoke -p seeds 0"
    result = run(command, checkout, folder=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_executed_notebook_says_what_it_shows(recipe, checkout):
    stem = recipe.notebook
    notebook = json.loads((checkout / "figures" / stem / "smoke" / f"{stem}.ipynb").read_text())
    text = "".join("".join(output.get("text", "")) for cell in notebook["cells"] for output in cell.get("outputs", []))
    assert re.search(rf"{len(recipe.plan('smoke'))} (trained now|from records) \(", text)


def test_network_of_the_readme_gets_smaller(tmp_path, monkeypatch):
    (block,) = re.findall(r"^```python\n(.*?)^```", (paths.ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names = {"network": build_model("resnet8", num_classes=10)}
    exec(block, names)
    sizes = [sum(weight.numel() for weight in names[name].parameters()) for name in ("network", "smaller")]
    assert sizes[1] < 0.6 * sizes[0] and (tmp_path / "smaller.prunelab").stat().st_size > 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_verdict_table_is_the_one_that_the_records_give(recipe, tmp_path):
    shipped = stores.on_record(recipe.plan("small"), store=tmp_path)
    experiments = {name: [run.id for run in runs] for name, runs in recipe.experiments("small").items()}
    frame = records.frame(shipped.values(), experiments)
    judged = claims.table(frame, profile="small")
    readme = (paths.ROOT / "README.md").read_text()
    assert claims.markdown(judged) in readme
    assert claims.tally(judged) in readme


def test_speed_table_is_the_one_that_was_measured():
    readme = (paths.ROOT / "README.md").read_text()
    for group in json.loads((paths.RECORDS / "bench.json").read_text()).values():
        for row in group.get("claims", []):
            measured = f"{row['median']:.2f} {row['unit']} ({row['low']:.2f} to {row['high']:.2f})"
            assert f"| {row['claim']} | {measured} | {row['target']} | {row['verdict']} |" in readme
            assert f"({group['provenance']['processor']})" in readme
