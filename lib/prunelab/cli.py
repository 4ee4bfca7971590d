"""The command line, `prunelab`: what can be asked for. What is done then stands in `commands`."""

import argparse
import contextlib
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from prunelab.runs import parse_seeds

_ENGINE = "local, or ray for a cluster: that at RAY_ADDRESS, or else one on this machine"
NOTEBOOK_MINUTES = 360  # for one notebook to run, unless --timeout says otherwise


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `prunelab`.

    Returns:
        Exit code: 0 for done, 1 where verify or bench found a difference, 2 for an error, 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    warnings.showwarning = lambda message, *about: print(f"prunelab: warning: {message}", file=sys.stderr)
    try:
        from prunelab.commands import COMMANDS  # these load torch, which takes seconds: --help does not wait for it

        return COMMANDS[options.command](options) or 0
    except KeyboardInterrupt as stop:
        print(f"\nprunelab: {str(stop) or 'stopped; start it again to go on from there'}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        # What a worker died of is told with its traceback; the reason before it is what a reader needs.
        print(f"prunelab: {str(error).split(chr(10) + 'Traceback')[0]}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunelab", description="Five papers on sparse and small networks: train, draw, check."
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    def plan(profile: str, *, required: bool = False) -> argparse.ArgumentParser:
        options = argparse.ArgumentParser(add_help=False)
        options.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 01_rigl; none for all")
        options.add_argument("--profile", required=required, help=f"smoke, small, full or paper{profile}")
        options.add_argument("--seeds", type=_seeds, metavar="0,1,2", help="instead of the profile's own")
        return options

    training = argparse.ArgumentParser(add_help=False)
    training.add_argument("--device", default="auto", help="auto, cpu or cuda")
    training.add_argument(
        "--jobs", type=partial(_whole, "jobs"), help="runs at the same time; one a core on CPUs, eight on a GPU"
    )
    fresh = argparse.ArgumentParser(add_help=False)
    fresh.add_argument("--fresh", action="store_true", help="leave shipped records aside: train on this machine")

    def add(name: str, about: str, *parents: argparse.ArgumentParser) -> Callable:
        return commands.add_parser(name, help=about, description=about, parents=parents).add_argument

    option = add("plan", "What a profile trains, and what that costs here.", plan("; none for each"), training)
    option("--help-options", action="store_true", help="what may be chosen of the notebooks' runs; plans nothing")
    option = add("run", "Train what is not on record.", plan("", required=True), fresh, training)
    option("--engine", default="local", help=_ENGINE)
    option("--ship", action="store_true", help="merge the records into data/records")
    about = "Execute notebooks with papermill: every figure and number anew."
    option = add("figures", about, plan("; the notebook's own by default"), fresh)
    option("--device", help="auto, cpu or cuda")
    option("--engine", help=_ENGINE)
    option("--timeout", type=_minutes, default=NOTEBOOK_MINUTES, metavar="MINUTES", help="for each notebook")
    about = "Train some recorded runs again and compare. Exit code 1 if a count (weights, MACs, steps) differs."
    option = add("verify", about, plan("; the largest one on record by default"), training)
    option("--sample", type=int, default=3, metavar="N", help="how many runs of each notebook (3)")
    option("--draw", type=int, metavar="SEED", help="draw the same runs each time")
    add("status", "What is on record, what is being trained.", plan("; none for each"))
    option = add("bench", "Measure the speed claims on this machine. Exit code 1 if one is missed.")
    groups = "engine, steps, channels, widths, scores, transfer, surgery, streaming, scale, cluster, notebooks"
    option("groups", nargs="*", metavar="GROUP", help=f"{groups}, curves, networks, front; none: all")
    option("--quick", action="store_true", help="a rough look in some minutes, which judges and writes nothing")
    option = add("shrink", "Train a network on a folder of images, and a smaller one that is as fast as you want.")
    option(
        "source",
        type=Path,
        metavar="FOLDER",
        help="train/ and test/ (or val/), a folder of images a class; or an archive",
    )
    option(
        "--latency",
        required=True,
        help="at most, for an image on this machine: 5ms, 0.8s, or 50%% of the network's own",
    )
    option("--model", default="resnet18", help="a classifier of torchvision or prunelab (resnet18)")
    option(
        "--weights", default="imagenet", help="to start from: imagenet for torchvision's, none, or a file (imagenet)"
    )
    option("--trained", action="store_true", help="the weights were trained on these images: only shrink the network")
    option("--epochs", type=partial(_whole, "epochs"), default=20, help="passes over the images (20)")
    option("--size", type=partial(_whole, "size"), default=224, metavar="PIXELS", help="side of the images (224)")
    option(
        "--batch-size",
        type=partial(_whole, "batch-size"),
        metavar="IMAGES",
        help="of a training step (64, or all where there are fewer)",
    )
    option("--device", default="auto", help="auto, cpu or cuda")
    option("--out", type=Path, metavar="FOLDER", help="for what is written (the name of the images, with -smaller)")
    add("report", "Write RESULTS.md and BENCHMARKS.md anew, from the records that ship.")
    add("gallery", "Write the notebooks as they are, with an index and search, as a site to read: build/gallery.")
    return parser


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return parse_seeds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(name: str, text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{name} must be a whole number from 1 on; got {text!r}")
    return int(text)


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < 60 * (minutes := float(text)) < math.inf:
            return minutes
    raise argparse.ArgumentTypeError(f"minutes must be a number above 0; got {text!r}")


if __name__ == "__main__":
    sys.exit(main())
