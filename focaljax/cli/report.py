"""focaljax report: one page about a run, to look at and to send on.

Usage: focaljax report --workdir DIR [--split SPLIT] [--out FILE] [--min_score S] [--pictures N]

  --workdir DIR         of a run of `focaljax train`, finished or not, or of a `focaljax sweep`
  --split SPLIT         train, val or test (default: the config's eval.split), as it was last evaluated
  --out FILE            the page (default: DIR/report.html)
  --min_score S         detections from this score on are looked at in confusions and pictures (default 0.3)
  --pictures N          how many of the best images, and of the worst (default 6; 0: none)

The page is one HTML file that loads nothing from elsewhere: how the run was made, its curves, AP per class, precision
over recall, scores of right and wrong detections, what was taken for what, the best and the worst images, all settings.
What is not there yet is named, with the command that makes it. Nothing is computed anew by the network.

Example:
  focaljax report --workdir runs/shapes
"""

import pathlib
import warnings
from collections.abc import Sequence

from absl import flags

from focaljax.cli.config import parse_flags
from focaljax.cli.console import say
from focaljax.cli.datasets import SPLITS
from focaljax.cli.main import UsageError, nearest
from focaljax.cli.report_run import run_page
from focaljax.cli.report_sweep import runs_below, sweep_page


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    flag_values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "of a run", flag_values=flag_values)
    flags.DEFINE_string("split", "", "train, val or test", flag_values=flag_values)
    flags.DEFINE_string("out", "", "the page", flag_values=flag_values)
    flags.DEFINE_float("min_score", 0.3, "of detections", lower_bound=0.0, upper_bound=1.0, flag_values=flag_values)
    flags.DEFINE_integer("pictures", 6, "how many", lower_bound=0, flag_values=flag_values)
    if unexpected := parse_flags(arguments, flag_values):
        raise UsageError(f"unexpected argument {unexpected[0]!r}; see `focaljax report --help`")
    if not flag_values.workdir:
        raise UsageError("--workdir=DIR is needed: the --workdir of a run of `focaljax train`")
    split = flag_values.split
    if split and split not in SPLITS:
        raise UsageError(f"--split={split}: expected one of {', '.join(SPLITS)}{nearest(split, SPLITS)}")
    workdir = pathlib.Path(flag_values.workdir)
    out = pathlib.Path(flag_values.out) if flag_values.out else workdir / "report.html"
    if out.is_dir():
        raise UsageError(f"--out={out} is a folder: name a file, such as {out / 'report.html'}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in letters that the font of the plots lacks
        warnings.filterwarnings("ignore", message="Data has no positive values")  # losses of 0
        if not (workdir / "config.json").exists() and (runs := runs_below(workdir)):
            page = sweep_page(workdir, runs)
        else:
            page = run_page(workdir, split, min_score=flag_values.min_score, num_pictures=flag_values.pictures)
        out.parent.mkdir(parents=True, exist_ok=True)
        page.write(out)
    say(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB, one file")
    return 0
