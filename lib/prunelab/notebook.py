"""What the first cells of a notebook need: checked parameters, where it runs, where its numbers come from."""

import ast
import inspect
import os
import textwrap
from collections.abc import Callable, Iterable, MutableMapping
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas as pd

from prunelab import __version__, paths, records
from prunelab.files import require_folder
from prunelab.runs import PROFILES, check_choice, did_you_mean, finite, parse_seeds

_ALLOWED = {"profile": PROFILES, "train": ("auto", "yes", "no"), "device": ("auto", "cpu", "cuda", "ray")}
_TRAINED_UNASKED = ("smoke", "small")  # the other profiles take a GPU, or a cluster
_STARTED = datetime.now(UTC).replace(microsecond=0)  # records give whole seconds
_CHECKED = "_parameters_are_checked"


def check_parameters(namespace: MutableMapping[str, object], /, **types: type) -> SimpleNamespace:
    """Stops a notebook whose parameters are mistyped, which papermill would run with the defaults.

    The first call in a kernel refuses undeclared names in the cells of assignments before it: papermill puts
    what it is given into such a cell. Later calls, among all that was defined since, check values only.

    Args:
        namespace: `globals()` of the notebook.
        types: Of each parameter: bool, int, float or str. `profile`, `train`, `device`, `seeds` must also make sense;
            `seeds` may also be a whole number.
    Returns:
        The values: a whole number given for a float is a float, and `seeds` is a tuple of int, empty for no text. Two
        are always there. `train` is whether to train what is not on record: where that, or to train afresh, was asked
        for, or the profile is a small one. `engine` is ray where that is the device, which is then auto; else local.
    Raises:
        ValueError: An undeclared name, no value, a wrong type or value; names what is allowed.
        OSError: Figures have nowhere to go; says what to do.
    """
    if _CHECKED not in namespace and (unknown := [name for name in _assigned(namespace) if name not in types]):
        raise ValueError(f"no parameter {unknown[0]!r}; there are {', '.join(types)}{did_you_mean(unknown[0], types)}")
    if missing := [name for name in types if name not in namespace]:
        raise ValueError(f"parameter {missing[0]!r} is not set; run the cell of parameters first")
    values = {name: _value(name, namespace[name], kind) for name, kind in types.items()}
    asked = values.get("train", "auto")
    values["train"] = asked == "yes" or (
        asked == "auto" and (values.get("fresh", False) or values.get("profile") in _TRAINED_UNASKED)
    )
    values["engine"] = "ray" if values.get("device") == "ray" else "local"
    if values["engine"] == "ray":
        values["device"] = "auto"
    require_folder(paths.FIGURES)
    namespace[_CHECKED] = True
    return SimpleNamespace(**values)


def _assigned(namespace: MutableMapping[str, object]) -> list[str]:
    """Returns the names that stand in the notebook now and that its cells of plain assignments set."""
    names = dict.fromkeys(name for cell in namespace.get("In", ()) for name in _targets(cell))
    return [name for name in names if name in namespace]


def _targets(cell: str) -> list[str]:
    """Returns the names that a cell sets, if it does nothing else."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        return []
    names = []
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case ast.Expr(ast.Constant()):  # text between the parameters
                pass
            case _:
                return []
    return names


def _value(name: str, value: object, kind: type) -> object:
    if type(value) in (int, float) and kind is float:
        value = finite(f"parameter {name}", value)
    if type(value) is int and name == "seeds":
        value = str(value)  # papermill makes a number of `-p seeds 0`
    if type(value) is not kind:
        hint = ', such as "0,1,2"' if name == "seeds" else ""
        raise ValueError(f"parameter {name} must be {kind.__name__}{hint}, got {value!r} ({type(value).__name__})")
    if name in _ALLOWED:
        check_choice(name, value, _ALLOWED[name])
    if name == "seeds":
        return parse_seeds(value) if value else ()
    return value


def environment_line(*, profile: str, device: str = "auto", engine: str = "local") -> str:
    """Says in one line which versions, device, commit and profile these are."""
    import torch

    from prunelab.workers import resolve_device

    if engine == "ray":
        where = "a cluster"
    else:
        where = torch.cuda.get_device_name() if resolve_device(device) == "cuda" else f"cpu ({os.cpu_count()} cores)"
    return f"prunelab {__version__} at commit {records.commit()}, torch {torch.__version__}, {where}, profile {profile}"


def show_source(*objects: Callable) -> None:
    """Prints the code of functions or classes as the library has it, so that no notebook holds a copy."""
    print("\n\n".join(textwrap.dedent(inspect.getsource(item)).rstrip() for item in objects))


class Tables(dict[str, pd.DataFrame]):
    """The records of each experiment as a table, by its name; a profile may be recorded in part.

    Attributes:
        missing: What is not on record, in words.
    """

    def __init__(self, frame: pd.DataFrame, planned: pd.DataFrame) -> None:
        """Args:
        frame: `records.frame` of what is on record.
        planned: `records.planned` of the same experiments.
        """
        recorded = frame.groupby("experiment") if len(frame) else ()
        super().__init__((name, rows.reset_index(drop=True)) for name, rows in recorded)
        self._counts = {
            name: f"{len(self.get(name, ()))} of {n} runs of {name}"
            for name, n in planned["experiment"].value_counts(sort=False).items()
            if len(self.get(name, ())) < n
        }
        counts = ", ".join(self._counts.values())
        self.missing = f"on record are only {counts}" if counts else "every run is on record"

    def have(self, *names: str) -> bool:
        """Tells whether there are records of each of some experiments; says so where there are none."""
        if absent := [name for name in names if name not in self]:
            print(f"not shown: on record are {', '.join(self._counts.get(name, f'no {name}') for name in absent)}")
        return not absent


def provenance_line(shown: Iterable[dict], *, since: datetime = _STARTED) -> str:
    """Says how many runs come from records and how many were trained now; when, on what commit and device.

    Args:
        shown: Records.
        since: What was trained from this moment on was trained "now"; by default, since the notebook began.
    """
    groups = {"from records": [], "trained now": []}
    for record in shown:
        is_new = datetime.fromisoformat(record["provenance"]["date"]) >= since
        groups["trained now" if is_new else "from records"].append(record["provenance"])
    return "; ".join(f"{len(runs)} {how} ({_origin(runs)})" for how, runs in groups.items() if runs) or "no runs"


def _origin(runs: list[dict]) -> str:
    days = sorted({run["date"][:10] for run in runs})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    devices = ", ".join(sorted({run["device"] for run in runs}))
    return f"{when}, commit {commits}, on {devices}, {_duration(sum(run['seconds'] for run in runs))} of training"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
