"""prunelab: five papers on sparse and small networks, re-run from scratch on one thin library."""

__version__ = "0.1.0"
