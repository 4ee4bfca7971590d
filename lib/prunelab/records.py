"""Records: what runs gave. One JSON object a run, whole or not at all.

`data/runs/<id>/record.json` holds what this machine trained; `data/records/<notebook>.jsonl` what ships, one line a
run, sorted by id. Each carries the SHA-256 of its other content. A record that is damaged, half-written or of another
format is named in a warning and left alone: its run counts as not yet trained.
"""

import contextlib
import functools
import json
import platform
import re
import subprocess
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import NoneType

import pandas as pd

from prunelab import __version__, paths
from prunelab.files import atomic_write, sha256
from prunelab.runs import Option, Run

FORMAT = 2
_EARLIER = 1  # without a SHA-256; shipped records were converted, a machine's own are adopted


class BadRecord(ValueError):
    """Content that is no record of this format."""


def _is_id(value) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _maps_to(*kinds: type):
    return lambda value: isinstance(value, dict) and all(isinstance(item, kinds) for item in value.values())


_PLAIN = (str, int, float, bool, NoneType)
_HOLDS = {  # what must hold for the value of each key that every record has
    "format": _is_whole,
    "id": _is_id,
    "recipe": lambda value: isinstance(value, str),
    "options": _maps_to(*_PLAIN),
    "seed": lambda value: _is_whole(value) and value >= 0,
    "parent": lambda value: value is None or all(map(_is_id, value if isinstance(value, list) else [value])),
    "status": lambda value: value in ("finished", "diverged"),
    "metrics": _maps_to(*_PLAIN),
    "curves": _maps_to(list),
    "layers": lambda value: isinstance(value, list) and all(isinstance(layer, dict) for layer in value),
    "provenance": _maps_to(*_PLAIN, dict),
}


def _check(record: dict) -> None:
    if missing := _HOLDS.keys() - record.keys():
        raise BadRecord(f"it lacks {', '.join(sorted(missing))}")
    if wrong := [key for key, holds in _HOLDS.items() if not holds(record[key])]:
        raise BadRecord(f"it has {wrong[0]} {record[wrong[0]]!r:.80}")


def _canonical(record: dict) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _text(record: dict) -> str:
    """Returns a record's text in today's format, with its SHA-256."""
    record = json.loads(_canonical(record | {"format": FORMAT}))  # as it will be read: all keys are text
    record.pop("sha256", None)
    _check(record)
    return _canonical(record | {"sha256": sha256(_canonical(record).encode())})


def parse(content: bytes, *, where: str, adopt: bool = False) -> dict:
    """Reads one record.

    Args:
        content: Its JSON, in UTF-8.
        where: What an error calls it.
        adopt: Accepts a record of the earlier format too, which has no SHA-256.
    Returns:
        The record without its SHA-256, which belongs to the text.
    Raises:
        BadRecord: Half-written or damaged content, or another format; names `where` it stands and what to do.
    """
    try:
        record = json.loads(content.decode(), parse_constant=_refuse)
        if not isinstance(record, dict):
            raise BadRecord("it is no JSON object")
        adopted = adopt and record.get("format") == _EARLIER and "sha256" not in record
        if not adopted and record.get("format") != FORMAT:
            raise BadRecord(f"it has record format {record.get('format')!r:.80}, this version reads {FORMAT}")
        digest = record.pop("sha256", None)
        if not (adopted or _stands_as_written(content, digest) or sha256(_canonical(record).encode()) == digest):
            raise BadRecord("its SHA-256 is not the one it was written with")
        _check(record)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{where} is damaged ({error}); its run will be trained again") from error
    return record


def _refuse(constant: str) -> None:
    raise BadRecord(f"Out of range float {constant}")


def _stands_as_written(content: bytes, digest: object) -> bool:
    """Tells whether a text is whole and canonical; where it is, its record need not be written again to be checked."""
    if not isinstance(digest, str):
        return False
    return sha256(content.replace(b'"sha256":"%b",' % digest.encode(), b"", 1)) == digest


def _read(path: Path) -> bytes | None:
    """Reads a file's content; None where there is no file, or, with a warning, where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        warnings.warn(f"{path} cannot be read ({error.strerror or error})", stacklevel=3)
        return None


def load(notebook: str) -> list[dict]:
    """Reads the records that ship with a notebook, good ones only; bad lines are named in warnings.

    Args:
        notebook: Its stem, such as "01_rigl".
    """
    path = paths.RECORDS / f"{notebook}.jsonl"
    good = []
    for number, line in enumerate((_read(path) or b"").splitlines(), start=1):
        try:
            good.append(parse(line, where=f"{path.name} line {number}"))
        except BadRecord as error:
            warnings.warn(str(error), stacklevel=2)
    return good


def local(store: Path | None = None, ids: Iterable[str] | None = None) -> list[dict]:
    """Reads the records of what this machine finished, good ones only; bad ones are named in warnings.

    Those of the earlier format are rewritten in today's, with one warning for all.

    Args:
        store: Folder of this machine's runs.
        ids: Of the runs that are looked for; all unless given.
    """
    store = store or paths.RUNS
    files = sorted(store.glob("*/record.json")) if ids is None else [store / run_id / "record.json" for run_id in ids]
    good = []
    for path in files:
        if (content := _read(path)) is None:
            continue
        try:
            record = parse(content, where=str(path), adopt=True)
            if record["id"] != path.parent.name:
                raise BadRecord(f"{path} is of another run, {record['id']}; its run will be trained again")
            good.append(record)
        except BadRecord as error:
            warnings.warn(str(error), stacklevel=2)
    earlier = [record for record in good if record["format"] == _EARLIER]
    for record in earlier:
        record["format"] = FORMAT
        with contextlib.suppress(OSError):  # a store that is only read: adopted again next time
            save(record, store)
    if earlier:
        warnings.warn(f"records of an earlier version, without a SHA-256, adopted: {len(earlier)}", stacklevel=2)
    return good


def save(record: dict, store: Path | None = None) -> None:
    """Puts a record into this machine's store.

    Raises:
        BadRecord: A value of a type that no record has.
    """
    atomic_write((store or paths.RUNS) / record["id"] / "record.json", _text(record))


def ship(notebook: str, records: Iterable[dict]) -> int:
    """Merges records into those that ship with a notebook; a run's newer record replaces its older one.

    Args:
        notebook: Its stem.
        records: Of today's format or the earlier one; those that ship with another notebook are left there.
    Returns:
        How many records ship now.
    Raises:
        BadRecord: A value of a type that no record has.
    """
    others = (path.stem for path in paths.RECORDS.glob("*.jsonl") if path.stem != notebook)
    elsewhere = {record["id"] for other in others for record in load(other)}
    merged = {record["id"]: record for record in [*load(notebook), *records] if record["id"] not in elsewhere}
    lines = [_text(merged[run_id]) + "\n" for run_id in sorted(merged)]
    atomic_write(paths.RECORDS / f"{notebook}.jsonl", "".join(lines))
    return len(lines)


def frame(records: Iterable[dict], experiments: Mapping[str, Iterable[str]] | None = None) -> pd.DataFrame:
    """Lays records out as a table, one row a run: options, metrics and provenance become columns.

    No value is changed; metrics are in today's words, see `metrics`. `replicate` is the seed of a run's outermost
    ancestor. The options of a run's parent, where it has one and that is among the records, become columns
    `parent_...`. What a run and all its ancestors took to train is `total_training_macs`, where all of these are among
    the records.

    Args:
        records: Of any runs.
        experiments: Ids of the runs of each experiment. The table then has a column `experiment`, one row for each
            run and experiment it belongs to, and no other runs.
    """
    by_id = {record["id"]: record for record in records}
    rows = {
        run_id: {"id": run_id, "recipe": record["recipe"], "seed": record["seed"], "status": record["status"]}
        | record["options"]
        | {"total_training_macs": _total_training_macs(record, by_id)}
        | {"replicate": _replicate(record, by_id)}
        | metrics(record)
        | {key: value for key, value in record["provenance"].items() if key != "dataset"}
        | _of_parent(_options(by_id, record["parent"]))
        for run_id, record in by_id.items()
    }
    if experiments is None:
        return pd.DataFrame(rows.values())
    return pd.DataFrame(
        {"experiment": name} | rows[run_id] for name, ids in experiments.items() for run_id in ids if run_id in rows
    )


_AMBIGUOUS = ("n_weights", "total_training_macs_ratio")


def metrics(record: Mapping) -> dict[str, int | float | None]:
    """Returns a record's metrics in today's words, each of which means the same for every recipe.

    Two words are not used any more. `n_weights` was the network's own weights in one recipe, and those of the network
    it is compared with in the other: `n_stored_weights` and `n_reference_weights`. `total_training_macs_ratio` summed
    ratios to different networks: `total_training_macs`, which `frame` adds up.
    """
    own = {name: value for name, value in record["metrics"].items() if name not in _AMBIGUOUS}
    if "n_weights" in record["metrics"]:
        own["n_stored_weights"] = sum(layer["n_weights"] for layer in record["layers"])
        own["n_reference_weights"] = round(own["n_active"] / own["measured_density"])
    return own


def _replicate(record: Mapping, by_id: Mapping[str, Mapping]) -> int:
    while parents := _parents(record):
        if parents[0] not in by_id:
            break
        record = by_id[parents[0]]
    return record["seed"]


def _parents(record: Mapping) -> list[str]:
    return [record["parent"]] if isinstance(record["parent"], str) else record["parent"] or []


def _total_training_macs(record: Mapping, by_id: Mapping[str, Mapping]) -> float | None:
    """Adds up a run and its ancestors; None where one of them is not among the records, or trained no network."""
    own = record["metrics"].get("training_macs")
    spent = [_total_training_macs(by_id[parent], by_id) if parent in by_id else None for parent in _parents(record)]
    return None if own is None or None in spent else own + sum(spent)


def planned(experiments: Mapping[str, Iterable[Run]], defaults: Mapping[str, Mapping[str, Option]]) -> pd.DataFrame:
    """Lists what is to be trained, in those columns of `frame` that are known beforehand.

    Args:
        experiments: The runs of each experiment.
        defaults: By recipe, the options that a run has unless it says otherwise.
    Returns:
        One row for each run and experiment it belongs to: `experiment`, `id`, `recipe`, `seed`, `replicate`, all
        options, and those of the one parent as `parent_...`.
    """

    def options(run: Run) -> dict:
        return {**defaults[run.recipe], **run.options}

    def replicate(run: Run) -> int:
        return replicate(run.parents[0]) if run.parents else run.seed

    return pd.DataFrame(
        {"experiment": name, "id": run.id, "recipe": run.recipe, "seed": run.seed, "replicate": replicate(run)}
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
    """Returns the short hash of the commit, with "+" where library code differs from it; "unknown" outside git.

    A repository that only surrounds the library, as one with an environment in it does, is not the library's.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.ROOT), "--git-dir", ".git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", "lib") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict:
    """Tells where and with what this process computes: date, commit, versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "prunelab": __version__,
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
    }
