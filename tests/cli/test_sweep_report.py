"""The table of a sweep and the file it is made from."""

from focaljax.cli.sweep_report import read_results, table, write_report
from focaljax.sweeps import Row, Sweep


def test_table_has_mean_spread_and_the_papers_column():
    rows = [Row("a", {}, paper={"AP": 0.3}), Row("b", {}), Row("c | d", {})]
    of_losses = Sweep("losses", {"small": "c.py"}, rows, seeds=(0, 1), metrics=("AP", "APs"))
    results = [
        {"row": "a", "seed": 0, "AP": 0.2, "APs": None},
        {"row": "a", "seed": 1, "AP": 0.4, "APs": 0.1},
        {"row": "b", "seed": 0, "AP": 0.5, "APs": None},
    ]
    assert table(of_losses, "small", results).splitlines() == [
        "| losses, small | AP | APs | seeds | paper's AP |",
        "|---|---:|---:|---:|---:|",
        "| a | 0.300 ± 0.141 | 0.100 | 2 of 2 | 0.300 |",
        "| b | 0.500 |  | 1 of 2 |  |",
        r"| c \| d |  |  | 0 of 2 |  |",
    ]


def test_results_of_two_data_sets_stand_in_one_file(tmp_path):
    sweep = Sweep("losses", {"small": "c.py", "large": "c.py"}, [Row("a", {})], seeds=(0, 1), metrics=("AP",))
    small, large, again = (
        [{"data": data, "row": "a", "seed": "0", "AP": AP, "APs": None, "flags": "x"}]
        for data, AP in (("small", 0.25), ("large", 0.5), ("small", 0.75))
    )
    for data, results in (("small", small), ("large", large), ("small", again)):
        write_report(tmp_path, sweep, data, results)
    read = read_results(tmp_path / "results.csv")
    assert [(result["data"], result["AP"], result["APs"]) for result in read] == [
        ("small", 0.75, None),
        ("large", 0.5, None),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "large.md", "large.png", "results.csv", "small.md", "small.png",
    ]  # fmt: skip
