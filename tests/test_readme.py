"""Every command of the README is executed, in a copy of this checkout as a newcomer would have it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from prunelab import pages, paths, records, verdicts
from prunelab.recipes import AFR, DMCP, RETHINKING, RIGL, STUDIES, TRANSFER
from prunelab.runs import PROFILES

# Numbers of a seed differ between kinds of processors as they do between seeds; means over seeds differ less.
TOLERANCE = 0.06
README = (paths.ROOT / "README.md").read_text()

pytestmark = pytest.mark.slow


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


# `make test` runs this very file, and of `make figures` one notebook; a clone and a virtual environment are there by
# then; the benchmark wants a machine of its own, and its quick form is executed.
EXECUTED_ELSEWHERE = ("git clone", "cd ", "make test", "make figures", ". .venv/bin/activate")
SMOKE = RETHINKING
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
def test_command_of_the_readme_works(command, checkout, tmp_path):
    folder = tmp_path if command.startswith("papermill") else None  # which works from any
    result = run(command.replace(" notebooks/", f" {checkout}/notebooks/"), checkout, folder=folder)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"] * bool(folder)


@pytest.fixture(scope="module")
def smoke(checkout):
    """The copy after one notebook, the cheapest, has trained its smoke profile; `make figures` does so with all."""
    result = run(f"prunelab figures {SMOKE.notebook} --profile smoke --fresh", checkout)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return checkout


def test_all_figures_are_drawn_of_networks_that_were_just_trained(smoke):
    shipped = {path.name for path in (paths.ROOT / "figures" / SMOKE.notebook / "small").glob("*.*")}
    # Smoke holds no images out to choose a rate by, and has no images of many classes.
    shipped = {name for name in shipped if not name.startswith(("rates.", "many_classes."))}
    drawn = {path.name for path in (smoke / "figures" / SMOKE.notebook / "smoke").glob("*.*")}
    assert shipped and shipped <= drawn


def test_fresh_smoke_runs_agree_with_the_shipped_records(smoke):
    planned = {run.id for run in SMOKE.plan("smoke")}
    fresh, shipped = (
        {record["id"]: record for record in found if record["id"] in planned}
        for found in (records.local(smoke / "data" / "runs"), records.load(SMOKE.notebook))
    )
    assert fresh.keys() == shipped.keys() == planned
    given = [run_id for run_id, record in fresh.items() if record["options"]["pruning"] in (None, "predefined")]
    for name in ("n_stored_weights", "macs", "training_macs", "n_epochs_trained", "n_steps"):
        assert all(records.metrics(fresh[i])[name] == records.metrics(shipped[i])[name] for i in given), name
    ours, theirs = (
        records.frame(found.values()).groupby("training")["test_accuracy"].mean() for found in (fresh, shipped)
    )
    assert (ours - theirs).abs().max() < TOLERANCE


def test_executed_notebook_says_what_it_shows(smoke):
    folder = smoke / "figures" / SMOKE.notebook / "smoke"
    notebook = json.loads((folder / f"{SMOKE.notebook}.ipynb").read_text())
    text = "".join("".join(output.get("text", "")) for cell in notebook["cells"] for output in cell.get("outputs", []))
    assert re.search(rf"{len(SMOKE.plan('smoke'))} (trained now|from records) \(", text)


def test_papermill_stops_at_a_mistyped_parameter_and_names_the_real_ones(checkout):
    result = run("papermill notebooks/01_rigl.ipynb out.ipynb -p profil smoke", checkout)
    assert result.returncode != 0
    assert re.search(r"no parameter 'profil'; there are profile, fresh, train.*Did you mean 'profile'", result.stderr)


def test_network_of_the_readme_gets_smaller(tmp_path, monkeypatch):
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)
    sizes = [sum(weight.numel() for weight in names[name].parameters()) for name in ("network", "smaller")]
    assert sizes[1] < 0.6 * sizes[0] and (tmp_path / "smaller.prunelab").stat().st_size > 0


def test_readme_is_short():
    assert len(README.split()) <= 2100


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_readme_counts_the_runs_of_each_profile(study):
    rows = {cells[0].strip("` "): cells for cells in (line.split("|")[1:] for line in README.splitlines()) if cells}
    column = 3 + list(STUDIES).index(study.name)
    for profile in PROFILES:
        assert re.match(rf" {len(study.plan(profile))} runs\b", rows[profile][column])


def test_what_came_out_is_what_the_records_say():
    small = pages.judge(RIGL, "small")
    row = next(row for row in small.itertuples() if row.claim + row.part == "RigL-C1a")
    assert f"level ({100 * row.difference:.1f} points, between {100 * row.low:.1f} and +{100 * row.high:.1f})" in README
    gmp, dense, snip = verdicts.points(small, "RigL-C7c", "RigL-C1c", "RigL-C1g")
    assert f"of RigL by {-gmp} points" in README
    assert (
        f"RigL is {dense} points ahead of a narrow dense network with as many weights, and {snip} ahead of SNIP"
        in README
    )
    on_h200, at = pages.judge(RIGL, "full"), "density=0.1"
    of_set, of_rigl = verdicts.points(on_h200, "RigL-C1b", "RigL-C7a", at=at)
    assert f"SET is {of_set} and RigL {of_rigl} points ahead of static at 90 % sparsity; the two are level" in README
    level = on_h200[(on_h200["claim"] + on_h200["part"] == "RigL-C1a") & (on_h200["at"] == at)].iloc[0]
    assert level["low"] < 0 < level["high"]

    found = records.frame(records.load(DMCP.notebook))
    dmcp, means = pages.judge(DMCP, "small"), found.query("n_epochs == 30").groupby("design")["test_accuracy"].mean()
    widths = [f"{100 * means[design]:.1f} %" for design in ("expected", "uniform", "random")]
    assert "{} with DMCP's widths, {} with uniform and {} with random ones; no difference".format(*widths) in README
    assert not {"DMCP-C1a", "DMCP-C1b"} & {
        *verdicts.named(dmcp, verdicts.REPRODUCED),
        *verdicts.named(dmcp, verdicts.NOT_REPRODUCED),
    }
    half = found.query("n_epochs == 8 and model == 'resnet20' and penalty == 0 and sandwich and cost == 'macs'")
    half = half.query("budget == 0.25 and warm_up == 0.5 and budget_penalty == 0.1")
    half = half.groupby("training")["half_width_accuracy"].mean()
    assert f"are worth {100 * half['dmcp']:.1f} %, of an ordinary one {100 * half['dense']:.1f} %" in README
    assert {"DMCP-C4a", "DMCP-C8a"} <= verdicts.named(dmcp, verdicts.REPRODUCED)

    rethinking = pages.judge(RETHINKING, "small")
    channels = [*(f"RT-C1{part}" for part in "abcdef"), *(f"RT-C2{part}" for part in "abc")]
    single, briefly = [f"RT-C3{part}" for part in "abc"], "short, rate 0.001"
    long, short = (verdicts.points(rethinking, *channels, at=at) for at in ("", briefly))
    n_held = len(set(channels) & verdicts.named(rethinking, verdicts.REPRODUCED))
    assert f"is {min(long) + 0.0} to {max(long)} points ahead of fine-tuning after channels were pruned" in README
    assert (
        f"in nine comparisons of four networks. That it is at most half a point behind is decided in {n_held}" in README
    )
    assert not set(channels) & verdicts.named(rethinking, verdicts.NOT_REPRODUCED)
    assert f"favour scratch by {int(min(short))} to {int(max(short))} points" in README
    behind = [-difference for difference in verdicts.points(rethinking, *single, at=briefly)]
    assert f"fine-tuning is {min(behind)} to {max(behind)} points behind Scratch-E" in README
    ahead, on_tiny = verdicts.points(rethinking, "RT-C3b", "RT-C3f")
    assert f"it is {ahead} ahead in a pre-activation ResNet, which is decided, level in the VGG" in README
    assert f"and {-on_tiny} behind on Tiny-ImageNet" in README
    assert "RT-C3b" in verdicts.named(rethinking, verdicts.REPRODUCED)
    assert "RT-C3a" in verdicts.named(rethinking, verdicts.INCONCLUSIVE)

    carried = pages.judge(TRANSFER, "small")
    dense, pruned, whole = verdicts.points(carried, "TR-C1a", "TR-C1d", "TR-C3b")
    assert f"AC/DC's features are {-dense} points behind dense and {-pruned} behind WoodFisher" in README
    assert f"WoodFisher is {whole} ahead of AC/DC, all decided" in README
    assert {"TR-C1a", "TR-C1d"} <= verdicts.named(carried, verdicts.NOT_REPRODUCED)
    assert "TR-C3b" in verdicts.named(carried, verdicts.REPRODUCED)

    afr, tuned = pages.judge(AFR, "small"), records.frame(records.load(AFR.notebook))
    snip, unseen, special, unlabelled = verdicts.points(afr, "AFR-C1a", "AFR-C1c", "AFR-C3a", "AFR-C4a")
    assert f"AFR is {snip} points ahead of SNIP on CIFAR-10 and {unseen} on unseen classes" in README
    assert "sees no label ({:+} and {:+})".format(*verdicts.points(afr, "AFR-C1b", "AFR-C1d")) in README
    assert f"{special} point ahead of SNIP, decided; without labels in pretraining {unlabelled}" in README
    assert {"AFR-C1a", "AFR-C1c", "AFR-C3a"} <= verdicts.named(afr, verdicts.REPRODUCED)
    assert {"AFR-C1b", "AFR-C1d", "AFR-C4a"} <= verdicts.named(afr, verdicts.INCONCLUSIVE)
    long = "dataset == 'cifar10' and n_epochs == 6 and density == 0.05 and parent_training == 'supervised'"
    plain = "and n_rounds == 1 and n_scored == 512 and mixture == 0.5 and scope == 'global' and features == 'cls'"
    means = tuned.query(f"{long} {plain} and not probed").groupby("score")["test_accuracy"].mean()
    assert "reaches {:.1f} % on CIFAR-10 at 95 %, AFR {:.1f} %".format(*100 * means[["magnitude", "afr"]]) in README

    front = pages.judge(STUDIES["frontier"], "small")
    weights, macs, bytes_ = verdicts.points(front, "FRONT-C1b", "FRONT-C2b", "FRONT-C6b")
    ahead = (
        f"masks are {weights} points ahead with as many weights, {macs} with as many MACs, {bytes_} behind in a file"
    )
    assert ahead in README and {"FRONT-C1b", "FRONT-C2b", "FRONT-C6b"} <= verdicts.named(front, verdicts.REPRODUCED)
    summary = nbformat.read(paths.NOTEBOOKS / "06_frontier.ipynb", as_version=4).cells[0].source  # which a cell checks
    for gained in ("gradual pruning gains 3.5 to 5.3 points", "small dense networks 6.7 to 8.8"):
        assert gained in README and gained in summary


@pytest.mark.parametrize("name", pages.PAGES)
def test_pages_of_numbers_are_those_that_the_records_give(name):
    """`prunelab report` renews them."""
    assert (paths.ROOT / name).read_text() == pages.PAGES[name]()
