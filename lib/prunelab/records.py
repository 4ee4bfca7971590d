"""Records: what runs gave. One JSON object a run, whole or not at all.

`data/runs/<id>/record.json` holds what this machine trained; `data/records/<notebook>.jsonl` what ships, one line a
run, sorted by id. A record that is damaged, half-written or of another format is named in a warning and left alone:
its run counts as not yet trained.
"""

import functools
import json
import platform
import subprocess
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pandas as pd

from prunelab import __version__, paths
from prunelab.files import atomic_write
from prunelab.runs import Option, Run

FORMAT = 1
_KEYS = {"format", "id", "recipe", "options", "seed", "parent", "status", "metrics", "curves", "layers", "provenance"}


class BadRecord(ValueError):
    """Text that is no record of this format."""


def parse(text: str, *, where: str) -> dict:
    """One record from its JSON text.

    Raises:
        BadRecord: Half-written or damaged text, or another format; names `where` it stands and what to do.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise BadRecord(f"{where} is damaged ({error}); its run will be trained again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise BadRecord(
            f"{where} has record format {found}, this version reads {FORMAT}; its run will be trained again"
        )
    if missing := _KEYS - record.keys():
        raise BadRecord(f"{where} lacks {', '.join(sorted(missing))}; its run will be trained again")
    return record


def _dump(record: dict) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":"))


def load(notebook: str) -> list[dict]:
    """The records that ship with a notebook, good ones only; bad lines are named in warnings.

    Args:
        notebook: Its stem, such as "01_rigl".
    """
    path = paths.RECORDS / f"{notebook}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return _good((line, f"{path.name} line {number}") for number, line in enumerate(lines, start=1))


def local(store: Path | None = None) -> list[dict]:
    """The records of all runs that this machine finished."""
    files = sorted((store or paths.RUNS).glob("*/record.json"))
    return _good((path.read_text(errors="replace"), str(path)) for path in files)


def find(run_id: str, store: Path | None = None) -> dict | None:
    """This machine's record of one run, or None."""
    path = (store or paths.RUNS) / run_id / "record.json"
    good = _good([(path.read_text(errors="replace"), str(path))]) if path.exists() else []
    return good[0] if good else None


def _good(texts: Iterable[tuple[str, str]]) -> list[dict]:
    records = []
    for text, where in texts:
        try:
            records.append(parse(text, where=where))
        except BadRecord as error:
            warnings.warn(str(error), stacklevel=3)
    return records


def save(record: dict, store: Path | None = None) -> None:
    """Puts a record into this machine's store."""
    atomic_write((store or paths.RUNS) / record["id"] / "record.json", _dump(record))


def ship(notebook: str, records: Iterable[dict]) -> int:
    """Merges records into those that ship with a notebook; a run's newer record replaces its older one.

    Returns:
        How many records ship now.
    """
    merged = {record["id"]: record for record in [*load(notebook), *records]}
    lines = [_dump(merged[run_id]) + "\n" for run_id in sorted(merged)]
    atomic_write(paths.RECORDS / f"{notebook}.jsonl", "".join(lines))
    return len(lines)


def frame(records: Iterable[dict], experiments: Mapping[str, Iterable[str]] | None = None) -> pd.DataFrame:
    """Records as a table, one row a run: options, metrics and provenance become columns; no value is changed.

    The options of a run's parent, where it has one and that is among the records, become columns `parent_...`.

    Args:
        records: Of any runs.
        experiments: Ids of the runs of each experiment. The table then has a column `experiment`, one row for each
            run and experiment it belongs to, and no other runs.
    """
    records = list(records)
    by_id = {record["id"]: record for record in records}
    rows = {
        run_id: {"id": run_id, "recipe": record["recipe"], "seed": record["seed"], "status": record["status"]}
        | record["options"]
        | record["metrics"]
        | {key: value for key, value in record["provenance"].items() if key != "dataset"}
        | _of_parent(_options(by_id, record["parent"]))
        for run_id, record in by_id.items()
    }
    if experiments is None:
        return pd.DataFrame(rows.values())
    return pd.DataFrame(
        {"experiment": name} | rows[run_id] for name, ids in experiments.items() for run_id in ids if run_id in rows
    )


def planned(experiments: Mapping[str, Iterable[Run]], defaults: Mapping[str, Mapping[str, Option]]) -> pd.DataFrame:
    """Lists what is to be trained, in those columns of `frame` that are known beforehand.

    Args:
        experiments: The runs of each experiment.
        defaults: By recipe, the options that a run has unless it says otherwise.
    Returns:
        One row for each run and experiment it belongs to: `experiment`, `id`, `recipe`, `seed`, all options, and
        those of the one parent as `parent_...`.
    """

    def options(run: Run) -> dict:
        return {**defaults[run.recipe], **run.options}

    return pd.DataFrame(
        {"experiment": name, "id": run.id, "recipe": run.recipe, "seed": run.seed}
        | options(run)
        | _of_parent(options(run.parents[0]) if len(run.parents) == 1 else {})
        for name, runs in experiments.items()
        for run in runs
    )


def _of_parent(options: Mapping[str, Option]) -> dict[str, Option]:
    return {f"parent_{name}": value for name, value in options.items()}


def _options(by_id: Mapping[str, dict], parent: str | list[str] | None) -> dict:
    return by_id[parent]["options"] if isinstance(parent, str) and parent in by_id else {}


@functools.cache
def commit() -> str:
    """Short hash of the checked-out commit, with "+" where library code differs from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "lib")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict:
    """Where and with what this process computes: date, commit, versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "prunelab": __version__,
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
    }
