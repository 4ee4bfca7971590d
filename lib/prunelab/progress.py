"""Progress of long work, as its reader can take it: a bar at a terminal or in a notebook, a few lines in a log."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from tqdm import tqdm

BAR_SECONDS = 0.5  # between two drawings of a bar
LOG_SECONDS, LOG_SHARE = 60.0, 0.1  # between two lines of a log: time, and share of all

Tell = Callable[[float], object]  # called with the number done so far, runs in hand with their share


def progress_of(n: int, *, what: str = "runs", to: str = "train", quiet: bool = False) -> AbstractContextManager[Tell]:
    """Opens what tells of progress.

    A notebook that papermill, nbconvert or nbval executes stays quiet: nobody sits before it, and its outputs stay.

    Args:
        n: How many there are to be done.
        what: They are, in the plural.
        to: What is done to them.
        quiet: Tells nobody.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    is_notebook = hasattr(shell, "kernel")
    if quiet or (is_notebook and not shell.get_parent().get("content", {}).get("allow_stdin", True)):
        return nullcontext(lambda n_done: None)
    return _bar(n, what) if is_notebook or sys.stderr.isatty() else _log(n, what, to)


@contextmanager
def _bar(n: int, what: str) -> Iterator[Tell]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets a notebook's bar is made of text
        from tqdm.auto import tqdm as kind  # chosen when it is imported
    with kind(total=n, unit=what.removesuffix("s"), leave=False, mininterval=BAR_SECONDS, miniters=0) as bar:
        yield lambda n_done: bar.update(round(n_done, 2) - bar.n)


@contextmanager
def _log(n: int, what: str, to: str) -> Iterator[Tell]:
    started = time.monotonic()
    last_seconds = last_done = 0.0

    def tell(n_done: float) -> None:
        nonlocal last_seconds, last_done
        seconds = time.monotonic() - started
        if seconds - last_seconds >= LOG_SECONDS and n_done - last_done >= LOG_SHARE * n:
            last_seconds, last_done = seconds, n_done
            left = seconds / n_done * (n - n_done)
            _write(f"{n_done:.0f} of {n} {what} in {_clock(seconds)}, about {_clock(left)} left")

    _write(f"{n} {what} to {to}")
    yield tell
    _write(f"{n} of {n} {what} in {_clock(time.monotonic() - started)}")


_clock = tqdm.format_interval  # minutes and seconds, and hours where there are any


def _write(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
