"""How tests run the launchers."""

import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "experiments" / "launch"
CONFIG = "configs/shapes.py"
# Spaces, parentheses, quotes and what shells and Kubernetes replace.
OVERRIDES = [
    "--config.eval.tta_scales=(0.8, 1.0)",
    '--config.data.root=it\'s "here" & $(there) \\ `now` $HOME * @NAME@',
    "--config.optim.steps=6",
]
JOBSET = ["--name=run", "--image=registry/focaljax:1", "--hosts=4", "--chips=google.com/tpu=4", "--claim=disk"]
XPK = ["--cluster=pods", "--name=run", "--tpu-type=v5litepod-16", "--image=registry/focaljax:1", "--storage=disk"]
# Of each launcher: its options, and what comes before CONFIG.
LAUNCHERS = {
    "local.sh": [],
    "slurm.sbatch": [],
    "tpu_pod.sh": ["pod"],
    "gke_jobset.sh": [word for option in JOBSET for word in option.split("=", 1)],
    "gke_xpk.sh": [word for option in XPK for word in option.split("=", 1)],
}
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def launch(script, *arguments, path=None, cwd=ROOT, **variables):
    """Runs a script as a user without Slurm's variables does; `path` holds the programs that it finds."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TMPDIR"))}
    env |= {"PATH": str(path or os.environ["PATH"]), **variables}
    command = [shutil.which("bash"), str(LAUNCH / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def dry_run(script, *arguments, **variables):
    completed = launch(script, "--dry-run", *arguments, **variables)
    assert completed.returncode == 0, completed.stderr
    assert not completed.stderr
    return completed.stdout


def training(workdir):
    return ["focaljax", "train", "--config", CONFIG, "--workdir", workdir, *OVERRIDES]


def add_program(folder, name, script):
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
    (folder / name).chmod(0o755)
