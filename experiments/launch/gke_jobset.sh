#!/usr/bin/env bash
# Trains on Kubernetes (GKE) with GPUs or TPUs: fills in jobset.yaml, one pod a host, and applies it.
#
# Usage: experiments/launch/gke_jobset.sh OPTIONS CONFIG WORKDIR [--config.KEY=VALUE ...]
#
#   CONFIG                  path in the image, relative to the repository, which is the image's working folder
#   WORKDIR                 absolute path of a folder on the claim
#   --name NAME             of the JobSet
#   --image IMAGE           holds the repository, installed
#   --hosts N               pods
#   --chips RESOURCE=COUNT  of each pod, such as google.com/tpu=4 or nvidia.com/gpu=8
#   --claim CLAIM           PersistentVolumeClaim that all pods can write to (ReadWriteMany)
#   --mount DIR             where pods see the claim; /shared if not given
#   --select KEY=VALUE      label of the nodes, such as cloud.google.com/gke-tpu-topology=4x4; may be given again
#   --restarts N            how often all is started anew after a failure; 50 if not given
#   --dry-run               print the command, with the filled-in YAML, instead of running it
#   --help                  this text
#
# Applied to kubectl's current cluster and namespace. The same command again goes on where the run stopped, after
# kubectl delete jobset NAME.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

# A string as YAML and JSON have it.
string() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

# KEY=VALUE as a member of a mapping.
member() {
  [[ $2 == ?*=?* ]] || fail "$1 must be KEY=VALUE, got $2"
  printf '%s: %s' "$(string "${2%%=*}")" "$(string "${2#*=}")"
}

name='' image='' hosts='' chips='' claim='' mount=/shared restarts=50 select=''
while [[ ${1:-} == -* ]]; do
  case $1 in
    --name) name=$(value "$@"); shift 2 ;;
    --image) image=$(value "$@"); shift 2 ;;
    --hosts) hosts=$(value "$@"); shift 2 ;;
    --chips) chips=$(value "$@"); shift 2 ;;
    --claim) claim=$(value "$@"); shift 2 ;;
    --mount) mount=$(value "$@"); shift 2 ;;
    --restarts) restarts=$(value "$@"); shift 2 ;;
    --select)
      label=$(value "$@")
      label=$(member "$1" "$label")
      select+=${select:+, }$label
      shift 2
      ;;
    *) common_option "$1"; shift ;;
  esac
done
for option in name image hosts chips claim; do
  [ -n "${!option}" ] || fail "--$option is needed: see --help"
done
need_number --hosts "$hosts" 1
need_number --restarts "$restarts" 0
mount=${mount%/}
[[ $mount == /?* ]] || fail "--mount must be an absolute path of a folder below /, got ${mount:-/}"
limits=$(member --chips "$chips")
set_training "$@"
need_remote_paths "$1" "$2"
[[ $2 == "$mount"/* ]] || fail "WORKDIR must be under $mount, where the claim is (--mount), got $2"
need kubectl "see kubernetes.io/docs/tasks/tools"

annotations=''
case $chips in # a slice is a node pool: the pods must not be spread over two of them
  google.com/tpu=*) annotations='alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool' ;;
esac

# Said rather than found: JAX finds the other pods by asking Kubernetes, for which it needs a package and a permission.
# The name is JobSet's for pod 0 of job 0 of `train`.
# Kubernetes replaces $(NAME), and $$( by $(.
# shellcheck disable=SC2016
arguments='' reference='$(' no_reference='$$('
for argument in "$@" "--coordinator=$name-train-0-0.$name:29400" "--processes=$hosts"; do
  arguments+="$(string "${argument//$reference/$no_reference}"), "
done
# shellcheck disable=SC2016
arguments+='"--process=$(JOB_COMPLETION_INDEX)"'

yaml=$(< "$(dirname "$0")/jobset.yaml")
fill() { yaml=${yaml//"@$1@"/"$2"}; }
fill NAME "$(string "$name")"
fill ANNOTATIONS "{$annotations}"
fill RESTARTS "$restarts"
fill HOSTS "$hosts"
fill SELECT "{$select}"
fill IMAGE "$(string "$image")"
fill CHIPS "{$limits}"
fill MOUNT "$(string "$mount")"
fill CLAIM "$(string "$claim")"
fill ARGUMENTS "[$arguments]" # the last one: what stands in the arguments is not filled in

if [ -n "$dry_run" ]; then
  printf "kubectl apply --filename - << 'END'\n%s\nEND\n" "$yaml"
  exit
fi
kubectl apply --filename - <<< "$yaml"
echo "$script: to look at it, and to save and stop it:"
# Of the job's pods, kubectl would take any; only the first one speaks.
first="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
echo "kubectl logs --follow --tail=-1 --selector=$first"
echo "kubectl delete jobset $name"
