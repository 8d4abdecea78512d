"""The report of what was repaired: counts, first places, and names that cannot forge a line or steer a terminal."""

from focaljax.data.report import DataReport, Finding, printable


def test_lines_have_the_count_and_the_first_places_of_each_kind():
    report = DataReport()
    for image_id in range(5):
        report.add("empty", f"{image_id}.jpg", image_id=image_id)
    report.add("missing", "x.jpg")
    assert report.lines(examples=2) == ["5 x empty: 0.jpg (image 0), 1.jpg (image 1), ...", "1 x missing: x.jpg"]
    assert report.lines(examples=0) == ["5 x empty: , ...", "1 x missing: , ..."]


def test_names_with_line_breaks_and_escapes_stay_on_one_line_and_do_not_act():
    finding = Finding("empty", "a\nb\x1b[2J\u202egnp\ud800.jpg", image_id=1)
    assert str(finding) == r"a\x0ab\x1b[2J\u202egnp\ud800.jpg (image 1)"
    assert DataReport([finding]).lines() == [rf"1 x empty: {finding}"]


def test_other_characters_stay():
    text = "[red]caf\u00e9[/red] \u65e5\u672c \U0001f600"
    assert printable(text) == text


def test_many_kinds_take_time_in_proportion():
    # One kind for each of 20,000 findings: by a search for each it would take minutes.
    report = DataReport(Finding(f"class name {k} twice", "a.json") for k in range(20_000))
    assert len(report.lines()) == 20_000
