import argparse
import pathlib
import sys

import mpmath
import numpy as np
import pytest

from tests.losses import exact as bars

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("exactness", "exactness_reference"):
        sys.modules.pop(name, None)


def definition(logit, label, alpha, gamma):
    p = 1 / (1 + mpmath.exp(-logit))
    miss = label * (1 - p) + (1 - label) * p
    weight = 1 if alpha is None else label * alpha + (1 - label) * (1 - alpha)
    return weight * miss**gamma * -(label * mpmath.log(p) + (1 - label) * mpmath.log(1 - p))


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 2.0, 5.0])
def test_reference_and_its_derivatives_are_those_of_the_definition(gamma):
    from exactness_reference import exact

    for label in (0.0, 1.0, 0.3):
        for logit in (-100.0, -16.2, -1.0, 0.0, 0.5, 88.0):
            with mpmath.workdps(250):  # 1 - p is 1e-44 and the difference quotients are taken far below it
                x = mpmath.mpf(logit)
                function = lambda x: definition(x, mpmath.mpf(label), 0.25, mpmath.mpf(gamma))  # noqa: B023, E731
                expected = [float(mpmath.diff(function, x, n, h=mpmath.mpf(10) ** -60)) for n in range(3)]
            np.testing.assert_allclose(exact(logit, label, 0.25, gamma), expected, rtol=1e-14, atol=1e-300)


def test_the_page_holds_the_library_to_the_bars_of_its_tests():
    import exactness_reference as page

    assert set(bars.LOGITS.tolist()) <= {page.as_float32(x) for x in page.LOGITS}
    assert (page.GAMMAS, page.ALPHAS) == (bars.GAMMAS, bars.ALPHAS)
    assert tuple(page.as_float32(y) for y in page.LABELS) == bars.LABELS
    assert (page.NEAR, page.BOUND_NEAR, page.BOUND_FAR) == (bars.NEAR, bars.RELATIVE_NEAR, bars.RELATIVE_FAR)


@pytest.mark.parametrize(
    ("logit", "label", "gamma", "expected"),
    [
        (np.inf, 1.0, 2.0, (0, 0)),
        (-np.inf, 1.0, 2.0, (np.inf, -0.9)),  # -alpha log(p) is -alpha times the logit
        (np.inf, 0.0, 0.0, (np.inf, 0.1)),
        (-np.inf, 0.0, 1e-3, (0, 0)),
        (np.inf, 0.5, 1.0, (np.inf, 0.125)),  # weight 0.5, 1 - p_t = 0.5, half the cross entropy
    ],
)
def test_reference_at_infinity_is_the_limit(logit, label, gamma, expected):
    from exactness_reference import exact

    np.testing.assert_allclose(exact(logit, label, 0.9, gamma)[:2], expected, rtol=1e-15, atol=1e-300)


def test_faults_are_counted_and_the_worst_are_found():
    from exactness_reference import Tally, tally, worst_cases

    logits = np.array([1.0, 2.0, -3.0, 4.0, 20.0, 50.0, -1e3, np.inf, -np.inf])
    # The fifth is too small for a float32, so that 0 is right; the last is a limit that is infinite.
    truth = np.array([[1.0, 2.0, 3.0, 4.0, 1e-60, 6.0, 7.0, 0.0, np.inf]])
    right = Tally(cases=7, not_finite=0, zero=0, near=0.0, far=0.0, limit_cases=2, wrong_limit=0)
    assert tally(truth, truth, logits) == right
    assert worst_cases(truth, truth, logits) == {}
    faulty = np.array([[1.0, np.nan, np.inf, 4.4, 0.0, 0.0, 7.07, 0.0, 1e30]])
    found = tally(faulty, truth, logits)
    assert (found.not_finite, found.zero, found.wrong_limit) == (2, 1, 1)
    np.testing.assert_allclose([found.near, found.far], [0.1, 1.0])
    assert worst_cases(faulty, truth, logits) == {
        "NaN or infinite": (0, 1),
        "zero": (0, 5),
        "off, to 20": (0, 3),
        "off, beyond": (0, 6),
        "wrong limit": (0, 8),
    }


def test_page_shows_ours_first_then_peers_and_no_numbers_for_what_is_missing(monkeypatch, tmp_path):
    import exactness
    import exactness_reference

    some = {name: exactness.CONTESTANTS[name] for name in ("focaljax", "focaljax, class ids", "optax", "scenic")}
    monkeypatch.setattr(exactness, "CONTESTANTS", some)
    monkeypatch.setattr(exactness_reference, "ALPHAS", (None,))
    path = tmp_path / "docs" / "page.md"
    exactness.main(["--peers", "optax,scenic", "--gammas", "2", "--out", str(path)])
    page = path.read_text()
    assert "    python benchmarks/exactness.py --peers optax,scenic --gammas 2\n" in page
    assert "without numbers: scenic." in page
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    summary = {row[0]: row for row in rows if len(row) == 12}
    assert list(summary) == ["library", "---", "focaljax", "focaljax, class ids", "optax"]
    # 41 logits and 3 labels, or 2 for class ids; nothing is NaN, infinite or 0 at a finite logit.
    assert [summary[name][1] for name in list(summary)[2:]] == ["123", "82", "123"]
    for name in list(summary)[2:]:
        assert [summary[name][i] for i in (2, 3, 7, 8)] == ["0"] * 4
    # Two columns of errors: a comparison of unlike grids would be far off.
    assert all(float(summary[name][i]) < 1e-5 for name in list(summary)[2:] for i in (4, 5, 9, 10))
    # optax has inf - inf at both infinities.
    assert summary["focaljax"][11] == "0 of 6"
    assert summary["optax"][11] == "6 of 6"


def test_peer_of_another_interpreter_is_measured_there_or_said_to_be_missing(monkeypatch):
    import exactness

    # Here as if the two needed torch, so that they are asked of a second process; it has optax, and no path to scenic.
    for name in ("optax", "scenic"):
        monkeypatch.setitem(exactness.CONTESTANTS, name, exactness.CONTESTANTS[name]._replace(needs="torch"))
    task = {"logits": [0.0, -1e30], "half_logits": [0.0], "labels": [1.0], "alphas": [None], "gammas": [0.0]}
    options = argparse.Namespace(python_with_torch=sys.executable, python_with_keras=None, scenic=None)
    answer = exactness.measure_anywhere("optax", task, options)
    assert answer is not None
    assert answer["half_types"] == ["bfloat16", "bfloat16"]
    value, first, second = np.array(answer["results"])[:, 0, 0, 0]
    # Cross entropy: log(2) and the logit; p - 1; p (1 - p).
    np.testing.assert_allclose(value, [np.log(2), 1e30], rtol=1e-6)
    np.testing.assert_allclose(first, [-0.5, -1], rtol=1e-6)
    np.testing.assert_allclose(second, [0.25, 0], rtol=1e-6)
    assert exactness.measure_anywhere("scenic", task, options) is None
