"""What a machine has of a plan's runs: their records, the states that other runs start from, their images."""

import warnings
from collections.abc import Iterable
from pathlib import Path

from prunelab import data, recipes, records
from prunelab.checkpoints import CorruptCheckpoint, load_checkpoint, save_checkpoint
from prunelab.recipes.recipe import State
from prunelab.runs import Run


def on_record(plan: Iterable[Run], *, fresh: bool = False, store: Path | None = None) -> dict[str, dict]:
    """Returns the records of those runs of a plan that need no training, by run id.

    Args:
        plan: Runs.
        fresh: Only what this machine trained; otherwise what ships comes first, and what this machine trained fills in.
        store: Folder of this machine's runs.
    """
    wanted = {run.id: run for run in plan}
    known = records.local(store, wanted)
    if not fresh:
        known += shipped(wanted.values())
    found = {}
    for record in known:
        if not (run := wanted.get(record["id"])):
            continue
        defaults = recipes.get(run.recipe).defaults  # of a newer option: what was done before
        record = record | {"options": defaults | record["options"]}
        known_by = (record["recipe"], record["options"], record["seed"], record["parent"])
        if known_by == (run.recipe, defaults | dict(run.options), run.seed, run.parent_ids):
            found[run.id] = record
        else:
            warnings.warn(f"record {run.id} is not of {run}, from which its id follows; it is left aside", stacklevel=2)
    return found


def shipped(plan: Iterable[Run]) -> list[dict]:
    """Reads what ships with the notebooks of a plan's recipes, and with those that show runs of any."""
    notebooks = {recipes.get(run.recipe).notebook for run in plan}
    notebooks |= {study.notebook for name, study in recipes.STUDIES.items() if name not in recipes.RECIPES}
    return [record for notebook in sorted(notebooks) for record in records.load(notebook)]


def save_state(run: Run, state: State | None, store: Path) -> None:
    """Puts what a run hands on into the store.

    Raises:
        ValueError: There is nothing to hand on, as from a path between two solutions.
    """
    if state is None:
        raise ValueError(f"{run} trains no network, so no other run can start from it")
    save_checkpoint(vars(state), state_file(run, store))


def state_file(run: Run, store: Path) -> Path:
    """Returns where what a run hands on lies, or would."""
    return store / run.id / "state"


def load_state(run: Run, store: Path) -> State:
    """Returns what a run hands on.

    Raises:
        FileNotFoundError: There is nothing.
        CorruptCheckpoint: Any byte of it has changed, or an earlier version wrote it.
    """
    path = state_file(run, store)
    try:
        return State(**load_checkpoint(path))
    except TypeError as error:
        raise CorruptCheckpoint(f"{path} is of an earlier version") from error


def has_state(run: Run, store: Path) -> bool:
    """Tells whether a run's children can start from what it left; warns where they cannot any more."""
    try:
        load_state(run, store)
    except FileNotFoundError:
        return False
    except (CorruptCheckpoint, OSError) as error:
        warnings.warn(f"{error}; its run will be trained again", stacklevel=2)
        return False
    return True


def require_images(plan: Iterable[Run], *, quiet: bool = False) -> None:
    """Makes sure that the images of all runs are on this machine; downloads those that torchvision has.

    Args:
        plan: Runs.
        quiet: Shows no progress.
    Raises:
        ValueError: Some cannot be used.
        data.DatasetNotFoundError: Some are not; names all data sets that are missing, and says how to get each.
    """
    options = [recipes.get(run.recipe).options_of(run) for run in plan]
    missing = {}
    for name, image_size in dict.fromkeys((each.dataset, each.image_size) for each in options):
        try:
            data.require(name, image_size=image_size, quiet=quiet)
        except data.DatasetNotFoundError as error:
            missing.setdefault(name, str(error))
    if missing:
        n_runs = sum(each.dataset in missing for each in options)
        what = f"nothing is trained: {n_runs} of {len(options)} runs need images that are missing: {', '.join(missing)}"
        raise data.DatasetNotFoundError("\n".join([what, *missing.values()]))
