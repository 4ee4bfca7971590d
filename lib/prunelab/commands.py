"""What each command of `prunelab` does: thin over engine, records, recipes and batch driver. It does the printing."""

import argparse
import ast
import contextlib
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from prunelab import bench, data, engine, forecast, pages, paths, recipes, records, runs, shrinking, stores, workers
from prunelab.data import DatasetNotFoundError
from prunelab.data.folders import ARCHIVE_SUFFIXES
from prunelab.files import atomic_write, require_folder
from prunelab.forecast import Workload
from prunelab.recipes import Recipe, Study, runner
from prunelab.runs import Run

# By how much a count may move with the kind of processor, where weights decide: selection cut tiny networks 9 % apart.
COUNT_TOLERANCE = 0.2

_OF_ALL = """\
GPU-hours of one H200, all afresh, at the {:.2f} TMACs a second that the runs of ResNet-20 had whose records ship;
larger networks take fewer, if their images are decoded as fast. GB of images, of sets that have 0.1 or more, and of the
networks that other runs start from, which are kept."""


def _studies(options: argparse.Namespace) -> list[Study]:
    every = sorted(study.notebook for study in recipes.STUDIES.values())
    return [recipes.for_notebook(stem) for stem in _stems(options) or every]


def _stems(options: argparse.Namespace) -> list[str]:
    """Returns the stems of the notebooks that were named, each once; a path such as notebooks/01_rigl.ipynb will do.

    Raises:
        ValueError: A path that leads elsewhere.
    """
    for name in options.notebooks:
        stem = Path(name).stem
        if name != stem and Path(name).resolve() != (paths.NOTEBOOKS / f"{stem}.ipynb").resolve():
            raise ValueError(f"{name} is no notebook of {paths.NOTEBOOKS}; those are named as 01_rigl is")
    return list(dict.fromkeys(Path(name).stem for name in options.notebooks))


def _plans(options: argparse.Namespace) -> Iterator[tuple[Study, str, list[Run]]]:
    """Gives study, profile and runs, parents included, of each notebook and profile that was asked for."""
    for study in _studies(options):
        for profile in [options.profile] if options.profile else recipes.PROFILES:
            yield study, profile, engine.with_parents(study.plan(profile, seeds=options.seeds))


def _plan(options: argparse.Namespace) -> None:
    if options.help_options:
        return _help_options(_studies(options))
    device = workers.resolve_device(options.device)
    jobs = options.jobs or workers.default_jobs(device)
    n_workers, slots = workers.share_out(jobs, device)
    plans = [(study, profile, plan, _workloads(plan)) for study, profile, plan in _plans(options)]
    known = {workload for *_, workloads in plans for workload in workloads.values()}
    if known:
        about = f"measuring this machine for about {forecast.SECONDS:.0f} seconds; large networks take longer"
        print(about, file=sys.stderr)
        calibration = forecast.calibrate(known, device=device, n_workers=n_workers, slots=slots)

    def minutes(chosen: list[Run], workloads: dict[str, Workload]) -> str:
        if not workloads:
            return "unknown"
        seconds = {run_id: calibration.seconds(workload) for run_id, workload in workloads.items()}
        expected = forecast.plan_seconds(chosen, seconds, n_workers=n_workers, start_seconds=calibration.start_seconds)
        return f"{expected / 60:,.1f}"

    rows = []
    for study, profile, plan, workloads in plans:
        done = stores.on_record(plan)
        left = [run for run in plan if run.id not in done]
        macs = sum(workload.training_macs for workload in workloads.values())
        if workloads:
            # Tasks of a set share its images.
            images = {recipes.get(run.recipe).options_of(run).dataset.partition(":")[0] for run in plan}
            disk = sum(map(data.gigabytes, images)) + forecast.state_gigabytes(plan, workloads)
        rows.append(
            {
                "notebook": study.notebook,
                "profile": profile,
                "runs": len(plan),
                "TMACs": f"{macs / 1e12:,.2f}" if workloads else "unknown",
                "GPU-hours": f"{forecast.gpu_hours(workloads.values()):,.2f}" if workloads else "unknown",
                "GB": f"{disk:,.1f}" if workloads else "unknown",
                "minutes afresh": minutes(plan, workloads),
                "on record": len(done),
                "to train": len(left),
                "minutes left": minutes(left, workloads),
            }
        )
    _print_table(rows)
    if unknown := [f"{study.notebook} {profile}" for study, profile, _, workloads in plans if not workloads]:
        print(f"unknown for {', '.join(unknown)}: images that decide it are not on this machine; see data/README.md")
    if known:
        print(f"minutes on this machine ({device}, {jobs} runs at once), as forecast from a short measurement")
        print(_OF_ALL.format(forecast.H200_MACS / 1e12))


def _help_options(chosen: Iterable[Study]) -> None:
    for study in chosen:
        print(f"{study.notebook}:")
        if not isinstance(study, Recipe):
            print("  none of its own: its runs are of the other notebooks")
            continue
        described = runs.describe(study.options).items()
        rows = [(name, kind, str(default), about) for name, (kind, default, about) in described]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())


def _workloads(plan: list[Run]) -> dict[str, Workload]:
    """Returns what each run is for a machine, by id; none where the images are missing that decide it."""
    kinds = {run: (run.recipe, frozenset(run.options.items())) for run in plan}  # which cost the same at any seed
    alike = {kind: run for run, kind in kinds.items()}
    try:
        costs = {kind: runner.forecast(recipes.get(run.recipe), run) for kind, run in alike.items()}
    except OSError:
        return {}
    return {run.id: costs[kind] for run, kind in kinds.items()}


def _run(options: argparse.Namespace) -> None:
    if options.ship:
        _require_clone("--ship")
    for study, profile, plan in _plans(options):
        done = engine.run(plan, fresh=options.fresh, device=options.device, jobs=options.jobs, engine=options.engine)
        n_diverged = sum(record["status"] == "diverged" for record in done)
        print(f"{study.notebook} {profile}: {len(done)} runs on record, {n_diverged} of them diverged")
        if options.ship:
            print(f"{study.notebook}: {records.ship(study.notebook, done)} records ship now")


def _figures(options: argparse.Namespace) -> int:
    from prunelab import batch

    stems = _stems(options) or batch.stems()
    for stem in stems:  # all that can be wrong, before anything is trained
        runs.check_choice("notebook", stem, batch.stems())
    for name, choices in (("profile", runs.PROFILES), ("engine", runs.ENGINES)):
        if (given := getattr(options, name)) is not None:
            runs.check_choice(name, given, choices)
    if options.engine == "ray" and options.device:
        raise ValueError(f"notebooks take the devices that a cluster has; leave out --device {options.device}")
    require_folder(paths.FIGURES)
    seeds = options.seeds and ",".join(map(str, options.seeds))  # one plain value, as a parameters cell has it
    device = "ray" if options.engine == "ray" else options.device
    given = {"profile": options.profile, "device": device, "seeds": seeds, "fresh": options.fresh or None}
    parameters = {name: value for name, value in given.items() if value is not None}
    at_once = _train_first(stems, options) if options.fresh else None  # else they show what is on record
    failed = []

    def report(stem: str, outcome: Path | batch.NotebookFailed, seconds: float) -> None:
        if isinstance(outcome, batch.NotebookFailed):
            failed.append(stem)
            print(f"prunelab: {outcome}", file=sys.stderr)
        else:
            path = outcome.relative_to(paths.ROOT) if outcome.is_relative_to(paths.ROOT) else outcome
            print(f"{stem}: {seconds:.0f} s, {path}", flush=True)

    batch.execute_all(stems, parameters=parameters, timeout=60 * options.timeout, report=report, at_once=at_once)
    return 2 if failed else 0


def _train_first(stems: list[str], options: argparse.Namespace) -> int | None:
    """Trains what the notebooks will ask for, all in one plan, which leaves no core idle; they find it on record.

    Returns:
        How many notebooks may run at the same time: 1 where they share a GPU, None for no limit.
    """
    from prunelab import batch

    plan = []
    for study in recipes.STUDIES.values():
        if study.notebook in stems:
            default = batch.declared(paths.NOTEBOOKS / f"{study.notebook}.ipynb")["profile"]
            plan += study.plan(options.profile or ast.literal_eval(default), seeds=options.seeds)
    device, own = options.device or "auto", options.engine or "local"
    # The notebook that lacks runs or images says so, and the others can still be drawn.
    with contextlib.suppress(engine.RunFailed, DatasetNotFoundError):
        engine.run(plan, fresh=True, device=device, engine=own)
    return 1 if own == "local" and workers.resolve_device(device) == "cuda" else None


def _verify(options: argparse.Namespace) -> int:
    rows = []
    for study in _studies(options):
        profile = options.profile or _recorded_profile(study)
        for pair in engine.verify(
            study.plan(profile, seeds=options.seeds),
            sample=options.sample,
            seed=options.draw,
            device=options.device,
            jobs=options.jobs,
        ):
            recorded, trained = pair["recorded"], pair["trained"]
            rows.append(
                {
                    "run": str(pair["run"]),
                    "recorded on": recorded["provenance"]["device"],
                    "recorded": recorded["metrics"].get("test_accuracy"),
                    "trained now": trained["metrics"].get("test_accuracy"),
                    "all numbers": "equal" if pair["equal"] else ", ".join(_differing_counts(pair)) or "differ",
                }
            )
    _print_table(rows)
    if any(row["all numbers"] == "differ" for row in rows):
        print("Equal numbers are promised on the same kind of processor with the same versions; here they differ.")
    return 0 if all(row["all numbers"] in ("equal", "differ") for row in rows) else 1


def _differing_counts(pair: dict) -> list[str]:
    """Names whole numbers, such as steps and active weights, that are further apart than another processor explains."""
    recorded, trained = records.metrics(pair["recorded"]), pair["trained"]["metrics"]
    return [
        f"{name} {value} became {trained.get(name)}"
        for name, value in recorded.items()
        if isinstance(value, int) and abs(trained.get(name, 0) - value) > COUNT_TOLERANCE * value
    ]


def _recorded_profile(study: Study) -> str:
    """Returns the largest profile whose runs are all on record; the smallest one where there is none."""
    whole = [
        profile
        for profile in recipes.PROFILES
        if len(stores.on_record(plan := study.plan(profile))) == len({run.id for run in plan})
    ]
    return whole[-1] if whole else recipes.PROFILES[0]


def _status(options: argparse.Namespace) -> None:
    mine = {record["id"]: record for record in records.local()}
    rows, ships = [], {}
    for study, profile, plan in _plans(options):
        ids = {run.id for run in plan}
        if study.notebook not in ships:  # read once for all profiles
            ships[study.notebook] = {record["id"]: record for record in stores.shipped(plan)}
        shipped = ships[study.notebook]
        known = mine | shipped
        rows.append(
            {
                "notebook": study.notebook,
                "profile": profile,
                "runs": len(ids),
                "shipped": len(ids & shipped.keys()),
                "trained here": len(ids & mine.keys()),
                "left": len(ids - known.keys()),
                "training now": sum(map(_is_running, ids - mine.keys())),
                "diverged": sum(known[run_id]["status"] == "diverged" for run_id in ids & known.keys()),
            }
        )
    _print_table(rows)


def _is_running(run_id: str) -> bool:
    folder = paths.RUNS / run_id
    if not (folder / "progress").exists():
        return False
    try:
        with FileLock(folder / "lock", timeout=0):
            return False  # its engine was killed; the next one goes on from its checkpoint
    except Timeout:
        return True


def _bench(options: argparse.Namespace) -> int:
    missed = False
    others = {"curves": _bench_curves, "networks": _bench_networks, "front": _bench_front}
    for group in options.groups or [*bench.GROUPS, *others]:
        own = others[group](quick=options.quick) if group in others else _bench_claims(group, quick=options.quick)
        missed |= any(row["verdict"].startswith("missed") for row in own.get("claims", []))
        if not options.quick:  # group by group, so that a stopped command keeps what is done
            print(f"written to {bench.save(group, own)}", flush=True)
    return 1 if missed and not options.quick else 0


def _bench_claims(group: str, *, quick: bool) -> dict:
    rows = []
    for row in bench.measure(group, quick=quick):
        rows.append(row)
        measured = f"{row['median']:7.2f} {row['unit']} ({row['low']:.2f} to {row['high']:.2f})"
        print(f"{row['claim']:42} {measured:28} {row['target']:8} {row['verdict']}", flush=True)
    return {"claims": rows}


def _bench_curves(*, quick: bool) -> dict:
    curves = []
    for curve in bench.curves(quick=quick):
        curves.append(curve)
        points = ", ".join(f"{x}: {y:g}" for x, y in curve["points"])
        print(f"{curve['y']} by {curve['x']}: {points}", flush=True)
    profile = bench.profile(quick=quick)
    print("where a step's time goes: " + ", ".join(f"{name} {share:.0%}" for name, share in profile.items()))
    if not quick:
        _draw_speed(curves)
    return {"curves": curves, "profile": profile}


def _bench_networks(*, quick: bool) -> dict:
    rows = []
    for row in bench.networks(quick=quick):
        rows.append(row)
        print(" ".join(f"{key} {value}" for key, value in row.items() if value != ""), flush=True)
    versions = {row["library"]: metadata.version(row["library"]) for row in rows}
    return {"versions": versions, "networks": rows}


def _bench_front(*, quick: bool) -> dict:
    rows = list(bench.times(quick=quick))
    print(f"{len(rows)} networks of 06_frontier timed")
    return {"times": rows}


def _draw_speed(curves: list[dict]) -> None:
    from matplotlib.figure import Figure

    from prunelab import figures

    fig = Figure(figsize=(11, 3.4), layout="constrained")
    fig.suptitle("Starting a process costs seconds, which many runs share; a step grows with the area of the images")
    data = figures.speed_curves(curves, axes=fig.subplots(1, len(curves)))
    alt = "Seconds a run by runs in a plan and by runs at once; milliseconds a step by the side of the images."
    figures.save_figure(fig, "bench", workers.resolve_device("auto"), "curves", data=data, alt=alt)


def _shrink(options: argparse.Namespace) -> None:
    source = options.source
    name = next(filter(source.name.endswith, ARCHIVE_SUFFIXES), "")
    out = options.out or Path(f"{source.resolve().name.removesuffix(name)}-smaller")
    report = shrinking.shrink_to(
        source,
        options.latency,
        out=out,
        model=options.model,
        weights=options.weights,
        is_trained=options.trained,
        n_epochs=options.epochs,
        batch_size=options.batch_size,
        image_size=options.size,
        device=workers.resolve_device(options.device),
        tell=partial(print, flush=True),
    )
    _print_table(shrinking.table(report))
    print(f"in {out}: {', '.join(sorted(path.name for path in out.glob('[!.]*')))}")


def _require_clone(what: str) -> None:
    if not paths.IS_CLONE:
        raise ValueError(f"{what} is for the repository, whose files it takes; prunelab is installed here: use a clone")


def _report(options: argparse.Namespace) -> None:
    _require_clone("report")
    for name, write in pages.PAGES.items():
        atomic_write(paths.ROOT / name, write())
        print(f"written: {name}")


def _gallery(options: argparse.Namespace) -> None:
    _require_clone("gallery")
    from prunelab import gallery

    print(f"written: {gallery.build(paths.ROOT / 'build' / 'gallery')[0]}")


def _print_table(rows: list[dict]) -> None:
    print(pd.DataFrame(rows).to_string(index=False) if rows else "nothing")


COMMANDS = {
    "plan": _plan,
    "run": _run,
    "figures": _figures,
    "verify": _verify,
    "status": _status,
    "bench": _bench,
    "shrink": _shrink,
    "report": _report,
    "gallery": _gallery,
}
