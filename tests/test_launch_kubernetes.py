"""The launchers of Kubernetes: the documents and commands that they would send, word for word. Nothing is launched."""

import json
import re
import shlex

import pytest
import yaml

from tests.launchers import (
    CONFIG,
    LAUNCHERS,
    OVERRIDES,
    ROOT,
    add_program,
    dry_run,
    launch,
)


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
