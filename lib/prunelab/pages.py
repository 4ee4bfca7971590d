"""The pages of numbers beside the README, written from records: what came out, and how fast it is."""

import json
from collections.abc import Iterable, Iterator

import pandas as pd

from prunelab import claims, paths, recipes, records, stores, verdicts
from prunelab.claims import Claim
from prunelab.recipes import Study

_RULE = """\
What each claim compares was written down in `data/paper/claims.csv` before its runs; what was changed after them is
listed with both verdicts. A difference is taken within each seed. Three to five seeds say little of their own spread,
so its variance is averaged with that of like rows (a moderated t; Smyth 2004), and the false discoveries over all rows
of a notebook and profile are held at 5 % (Benjamini-Hochberg): a row is *reproduced* or *not reproduced* where q is at
most 0.05, else *inconclusive*. The interval is each row's own, at 95 %. Accuracies and costs are in points, losses as
they are. *In other settings* has the same comparison, which is told and not judged, and what one number hides: a short
training, levels that point opposite ways. The paper's number is followed by the network and the data that it was
measured on."""

_REWRITTEN = """\
What these rows compare was changed after the runs that they first compared. In `01_rigl` they said more than they
compared, or pooled what points opposite ways, and their runs are the same: they are no test of a prediction, and
neither are RigL-C2e, ONE-C1f and ONE-C1g, which were added when runs of theirs were on record. In `03_rethinking` they
were moved to longer trainings of one density each, before these were run. As first written
(`data/paper/first_rules.csv`) today's test would judge them so:"""

_WORDS = """\
In the tables: *short, 12 epochs* marks a row where other rows of the network or the images are trained for much longer;
*long*, *short* and *repeated* are lengths of training, *rate* is that of fine-tuning, and *narrower network, 5x* is
trained five times as long on fewer images; *opposite ways* names listed values that disagree, *the sign turns* other
settings that disagree with what is judged. Scratch-E trains new weights for as many epochs as the large network,
Scratch-B for as many MACs. Density is the share of weights that stays. A row without interval and q is a cost, fixed by
options, in percent of the dense network's."""

_CHANGED = """\
At first the interval was a percentile bootstrap over seeds, and each row was judged by itself. With three seeds that is
no more than their range: simulated, it covers 75 %, and calls one row in eight reproduced where there is no difference
at all. These rows were judged otherwise then; some are of longer trainings now, or say more exactly what they
compare:"""

_SPEED = """\
Written by `prunelab report` from what `make bench` measured (about half an hour; `prunelab bench channels` measures a
part). Each row is two things that took turns: the median, and in brackets the lowest and the highest round. Times are
ratios on one machine, so that machines need not be alike; a table names its machine. Not measured on any GPU yet."""


_SCALE = """\
`prunelab bench scale` (some minutes) has the engine train 20,000 runs, in lines of four, on 200 workers that train
nothing and answer at once, one at a time: what it measures is the engine and the store, in CPU time where it says so.
Records are one file each, all of them read in one pass, which holds at this size: no index is kept beside them. *The
limit that comes first* is none of these rows but the networks that other runs start from. Of 20,000 such runs
{n_states:,} leave one: {gigabytes:.0f} GB, if each is a ResNet-20. Before a plan that was stopped goes on, the engine
reads each of those whose children are missing, for up to {minutes:.0f} minutes. Next come the seconds until all records
are read, which grow with their number, at the start of each command."""

_STRANGERS = """\
`prunelab bench networks` (a quarter of an hour, timm's where it is installed) follows each network, takes a random half
out of all layers and attentions that may lose channels or heads, and compares the outputs in double precision with
those of the whole network, in which nobody reads what went. *left* is the share of the parameters that stays."""

_CURVES = "Seconds a run by runs in a plan and by runs at once; milliseconds a step by the side of the images"


def results() -> str:
    """Writes RESULTS.md: the verdicts on every profile of each notebook that some records judge."""
    pages = ["# Results", "Written by `prunelab report` from the records that ship.", _RULE, _WORDS]
    for study in recipes.STUDIES.values():
        for profile in recipes.PROFILES:
            judged = judge(study, profile)
            if (judged["verdict"] != verdicts.NOT_JUDGED).any():
                pages += [f"## {study.notebook}, {profile}", _tally(judged)]
                pages += [verdicts.markdown(judged), *_waiting(judged)]
                if profile == "small":
                    if changes := _changes(judged):
                        pages += [f"### Judged otherwise by the earlier rule\n\n{_CHANGED}", changes]
                    pages += _rewritten(study, judged)
    return "\n\n".join(pages) + "\n"


def judge(study: Study, profile: str, *, of: Iterable[Claim] | None = None) -> pd.DataFrame:
    """Judges the claims about a notebook by the records that ship, as `verdicts.table`."""
    experiments = study.experiments(profile)
    ids = {name: [run.id for run in runs] for name, runs in experiments.items()}
    frame = records.frame(stores.shipped(study.plan(profile)), ids)
    planned = records.planned(experiments, {name: each.defaults for name, each in recipes.RECIPES.items()})
    frame, planned = study.extended(frame, planned)
    return verdicts.table(frame, planned=planned, profile=profile, recipe=study.name, of=of)


def _tally(judged: pd.DataFrame) -> str:
    of_levels = judged[~judged["at"].eq("") & ~judged["verdict"].isin([verdicts.NOT_JUDGED, verdicts.BESIDE])]
    if of_levels.empty:
        return f"{verdicts.tally(judged).capitalize()}."
    counts = of_levels["verdict"].value_counts()
    found = ", ".join(f"{counts.get(word, 0)} {word}" for word in verdicts.WORDS[:-1])
    n = len(of_levels[["claim", "part"]].drop_duplicates())
    return f"{verdicts.tally(judged).capitalize()}. Of these {n} are judged at single listed values: {found}."


def _waiting(judged: pd.DataFrame) -> Iterator[str]:
    names = judged["claim"] + judged["part"]
    is_shown = names.isin(names[judged["at"] != ""])  # at a listed value
    waiting = verdicts.pooled(judged[~is_shown]).query("verdict == @verdicts.NOT_JUDGED")
    reasons = waiting["reason"].str.replace(r"^\d+ of \d+ runs", "some runs", regex=True)
    for reason, own in (waiting["claim"] + waiting["part"]).groupby(reasons, sort=False):
        yield f"Not judged, {reason}: {', '.join(own)}."


def _changes(judged: pd.DataFrame) -> str:
    rows = [
        f"| {claim} | {earlier}, {before} | {now}, {found} |"
        for claim, earlier, before, now, found in verdicts.changed(judged).itertuples(index=False)
    ]
    return "\n".join(["| claim | by the earlier rule | now |", "|---|---|---|", *rows]) if rows else ""


def _rewritten(study: Study, judged: pd.DataFrame) -> list[str]:
    """Sets the rows whose rule was changed after their runs beside what the first rule gives."""
    first = {(claim.id, claim.part): claim for claim in claims.load(paths.PAPER / "first_rules.csv")}
    if not any(claim.recipe == study.name for claim in first.values()):
        return []
    before = judge(study, "small", of=[first.get((claim.id, claim.part), claim) for claim in claims.load()])
    lines = ["| claim | as first written | then | now |", "|---|---|---|---|"]
    for then, now in zip(*(verdicts.pooled(own).itertuples() for own in (before, judged)), strict=True):
        if (then.claim, then.part) in first:
            verdict = " | ".join(f"{row.verdict}, {verdicts.difference(row)}" for row in (then, now))
            lines.append(f"| {then.claim}{then.part} | {then.statement} | {verdict} |")
    return [f"### Rules changed after their runs\n\n{_REWRITTEN}", "\n".join(lines)]


def benchmarks() -> str:
    """Writes BENCHMARKS.md: every measured claim of speed, by the machine that it was measured on."""
    measured = json.loads((paths.RECORDS / "bench.json").read_text())
    pages, machines = ["# Benchmarks", _SPEED], {}
    for group in measured.values():
        made = group["provenance"]
        where = f"{made['cores']} cores of an {made['processor']}" if made["device"] == "cpu" else made["device"]
        if "claims" in group:
            machines.setdefault(f"On {where}, torch {made['torch']}", []).extend(group["claims"])
    for where, rows in machines.items():
        table = ["| claim | measured | target | |", "|---|---|---|---|"]
        for row in rows:
            median = f"{row['median']:.2f} {row['unit']} ({row['low']:.2f} to {row['high']:.2f})"
            table.append(f"| {row['claim']} | {median} | {row['target']} | {row['verdict']} |")
        pages += [f"## {where}", "\n".join(table)]
    shares = ", ".join(f"{part} {share:.0%}" for part, share in measured["curves"]["profile"].items())
    pages.append(f"Where the time of a step of ResNet-20 goes: {shares}.")
    pages.append(f"![{_CURVES}](figures/bench/cpu/curves.png)")
    pages += _scale(measured)
    pages += _networks(measured["networks"])
    return "\n\n".join(pages) + "\n"


def _scale(measured: dict) -> Iterator[str]:
    """Tells what is the limit of a plan's size, from what each state takes."""
    if "scale" in measured:
        *_, check, size = (row["median"] for row in measured["scale"]["claims"])  # ms, MB
        n_states = 15_000
        found = {"n_states": n_states, "gigabytes": n_states * size / 1e3, "minutes": n_states * check / 60e3}
        yield f"## Twenty thousand runs\n\n{_SCALE.format(**found)}"


def _networks(measured: dict) -> Iterator[str]:
    """Tells what of others' networks can be followed and removed: the sums, and a table."""
    rows = pd.DataFrame(measured["networks"])
    is_followed = rows["difference"].notna()
    sums = [
        f"{is_followed[own.index].sum()} of {len(own)} networks of {library} {measured['versions'][library]}"
        for library, own in rows.groupby("library", sort=False)
    ]
    yield f"## Networks that others wrote\n\n{_STRANGERS}"
    yield (
        f"{' and '.join(sums)} are followed. Outputs differ by at most {rows['difference'].max():.0e} of the largest."
        f" In {(is_followed & (rows['layers'] + rows['heads'] == 0)).sum()} nothing may go by itself."
    )
    lines = ["| network | parameters | layers | heads | left | outputs differ by | |", "|---|---|---|---|---|---|---|"]
    for row in rows.itertuples():
        found = "| | | |"
        if not pd.isna(row.difference):
            found = f"{row.parameters / 1e6:.1f} M | {row.layers:.0f} | {row.heads:.0f} | {row.left:.0%} |"
            found += f" {row.difference:.0e}"
        lines.append(f"| {row.library} {row.network} | {found} | {row.why} |")
    yield "\n".join(lines)


PAGES = {"RESULTS.md": results, "BENCHMARKS.md": benchmarks}
