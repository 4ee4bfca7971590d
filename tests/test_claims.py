"""How claims are written: what can be read, and which runs a comparison is about."""

from itertools import chain

import pandas as pd
import pytest

from prunelab import claims, paths

ROW = {
    "recipe": "rigl",
    "id": "RigL-C1",
    "part": "a",
    "paper": "Evci et al. 2020",
    "statement": "RigL is more accurate than SET.",
    "metric": "test_accuracy",
    "better": "method=rigl",
    "worse": "method=set",
    "where": "density=0.1",
    "beside": "",
    "margin": "0",
    "paper_better": "0.720",
    "paper_worse": "0.696",
    "paper_setting": "ResNet-50, ImageNet",
    "paper_source": "Fig. 2-left",
    "profile": "small",
    "needs": "",
}


def claim(**changes):
    return claims.parse(ROW | changes)


def test_a_row_is_read_as_cells_and_numbers():
    read = claim(better="method=rigl density=0.2|0.1", worse="method=dense", where="experiment=main", margin="-0.01")
    assert read.better == ({"method": ("rigl",), "density": ("0.2", "0.1"), "experiment": ("main",)},)
    assert read.listed == {"density": ("0.2", "0.1")} and read.margins == (-0.01,)
    assert read.paper_better - read.paper_worse == pytest.approx(0.024)


def test_a_margin_of_both_signs_has_two_ends():
    assert claim(margin="±0.005").margins == (-0.005, 0.005)


def test_another_setting_is_the_same_comparison_elsewhere():
    read = claim(beside="short: density=0.1 n_epochs=12; paper's rate: density=0.2")
    assert list(read.beside) == ["short", "paper's rate"]
    short = read.beside["short"]
    assert short.better == ({"method": ("rigl",), "density": ("0.1",), "n_epochs": ("12",)},)
    assert (short.metric, short.margins, short.beside) == (read.metric, read.margins, {})


def test_runs_are_found_by_seed_at_each_listed_value():
    planned = pd.DataFrame(
        {"id": f"{method} {density} {seed}", "method": method, "density": density, "seed": seed}
        for method in ("set", "rigl")
        for density in (0.1, 0.05)
        for seed in (1, 0)
    )
    pairs = claims.compared(claim(where="density=0.1|0.05"), planned)
    assert pairs.reset_index().to_numpy().tolist() == [
        [1, "rigl 0.1 1", "set 0.1 1", "density=0.1"],
        [0, "rigl 0.1 0", "set 0.1 0", "density=0.1"],
        [1, "rigl 0.05 1", "set 0.05 1", "density=0.05"],
        [0, "rigl 0.05 0", "set 0.05 0", "density=0.05"],
    ]


def test_a_cell_with_a_value_of_its_own_keeps_it_where_another_lists_several():
    read = claim(better="method=rigl density=0.2|0.1", worse="method=dense density=1", where="")
    at = {name: [*chain(*(cell["density"] for cell in cells))] for name, cells in claims.levels(read).items()}
    assert at == {"density=0.2": ["0.2", "1"], "density=0.1": ["0.1", "1"]}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"better": "rigl"}, r"cannot read 'rigl' in 'rigl'"),
        ({"better": "method="}, r"cannot read 'method='"),
        ({"better": "method=rigl|"}, r"cannot read 'method=rigl\|'"),
        ({"better": "method==rigl"}, r"cannot read 'method==rigl'"),
        ({"better": "method=rigl method=set"}, r"cannot read 'method=set' in 'method=rigl method=set'"),
        ({"better": "method=rigl -method=set"}, r"cannot read '-method=set'"),
        ({"better": ""}, "empty expression"),
        ({"worse": "a=1 - b=2 - c=3"}, r"difference of two, got 'a=1 - b=2 - c=3'"),
        ({"worse": "method=set density=0.2"}, r"density stands in 'method=set density=0.2' and in where"),
        (
            {"where": "", "better": "density=0.1|0.2", "worse": "density=0.1|0.5"},
            r"two lists for density: 0.1\|0.2 and",
        ),
        ({"margin": "a point"}, r"expected a number, got 'a point'"),
        ({"margin": "nan"}, r"expected a number, got 'nan'"),
        ({"margin": "±"}, r"expected a number, got ''"),
        ({"margin": "±-0.005"}, "expected a number above 0 after ±, got '±-0.005'"),
        ({"margin": "1_0"}, "expected a number, got '1_0'"),
        ({"beside": "density=0.2"}, r"cannot read 'density=0.2' in 'density=0.2'; expected name: column=value"),
        ({"beside": "short: density"}, r"cannot read 'density'"),
        ({"beside": "a: density=0.2;b: density=0.1; a: density=0.5"}, "'a' stands twice in 'a: density=0.2;b: "),
        ({"paper_worse": "69,6"}, r"expected a number, got '69,6'"),
        ({"profile": "tiny"}, r"unknown profile 'tiny'; there are smoke, small, full, paper"),
    ],
)
def test_malformed_row_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"claim RigL-C1 part a: .*{message}"):
        claim(**changes)


def test_a_part_that_stands_twice_is_refused(tmp_path):
    first, second, *_ = (paths.PAPER / "claims.csv").read_text().splitlines()
    (tmp_path / "claims.csv").write_text("\n".join([first, second, second]))
    with pytest.raises(ValueError, match=r"claims\.csv has RigL-C1a twice"):
        claims.load(tmp_path / "claims.csv")
    (tmp_path / "claims.csv").write_text("\n".join([first, second + ",one,more"]))
    with pytest.raises(ValueError, match=r"claims\.csv cannot be read: its rows have more fields"):
        claims.load(tmp_path / "claims.csv")


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "claims.csv").write_text("id,part\nRigL-C1,a\n")
    with pytest.raises(ValueError, match=r"claims\.csv has columns id, part; they must be recipe, id, part"):
        claims.load(tmp_path / "claims.csv")
