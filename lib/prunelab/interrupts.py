"""What ends the processes that one starts: its own end, and Ctrl-C, which a terminal sends to all of a command.

One of them answers Ctrl-C, the others print nothing.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def held_back() -> Iterator[None]:
    """Holds back Ctrl-C from processes started in here, for good or until `end_silently`; here it comes afterwards."""
    resource_tracker.ensure_running()  # with the first process; it lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_silently() -> None:
    """Lets Ctrl-C end this process, also one that was held back, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def end_with_parent() -> None:
    """Has this process, started by `multiprocessing`, end when its parent does, however that ends."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
