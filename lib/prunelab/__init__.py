"""prunelab: five papers on sparse and small networks, re-run from scratch on one thin library."""

import sys

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # noqa: UP036  a notebook's first cell comes here without pip, which would have said so
    raise ImportError(
        f"prunelab needs Python 3.11 or newer; this is {sys.version.split()[0]}. "
        "Choose another kernel in Jupyter, another interpreter elsewhere"
    )
