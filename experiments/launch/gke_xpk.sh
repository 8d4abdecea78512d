#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that xpk made.
#
# Usage: experiments/launch/gke_xpk.sh OPTIONS CONFIG WORKDIR [--config.KEY=VALUE ...]
#
#   CONFIG              path in the image, relative to the repository, which is the image's working folder
#   WORKDIR             absolute path of a folder on the storage
#   --cluster CLUSTER   of xpk
#   --name NAME         of the workload
#   --tpu-type TYPE     such as v5litepod-16
#   --image IMAGE       holds the repository, installed
#   --storage STORAGE   that xpk storage attach made, writable
#   --slices N          1 if not given
#   --zone ZONE         of the cluster; gcloud's own setting if not given
#   --project PROJECT   likewise
#   --restarts N        how often all is started anew after a failure; 50 if not given
#   --dry-run           print the command instead of running it
#   --help              this text
#
# The same command again goes on where the run stopped, after xpk workload delete --cluster CLUSTER --workload NAME.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

cluster='' name='' tpu_type='' image='' storage='' slices=1 restarts=50
flags=()
while [[ ${1:-} == -* ]]; do
  case $1 in
    --cluster) cluster=$(value "$@"); shift 2 ;;
    --name) name=$(value "$@"); shift 2 ;;
    --tpu-type) tpu_type=$(value "$@"); shift 2 ;;
    --image) image=$(value "$@"); shift 2 ;;
    --storage) storage=$(value "$@"); shift 2 ;;
    --slices) slices=$(value "$@"); shift 2 ;;
    --restarts) restarts=$(value "$@"); shift 2 ;;
    --zone | --project) pass_on "$@"; shift 2 ;;
    *) common_option "$1"; shift ;;
  esac
done
for option in cluster name tpu_type image storage; do
  [ -n "${!option}" ] || fail "--${option/_/-} is needed: see --help"
done
need_number --slices "$slices" 1
need_number --restarts "$restarts" 0
set_training "$@"
need_remote_paths "$1" "$2"
need xpk "pip install xpk"

# xpk starts anew after few exit codes of its own choice; 1 is a run that was stopped or failed, 2 one whose processes
# did not find each other. The seconds are those of jobset.yaml.
flags+=(--restart-on-exit-codes="1,2" --termination-grace-period-seconds=120)
flags+=(--cluster="$cluster" --workload="$name" --tpu-type="$tpu_type" --num-slices="$slices"
  --docker-image="$image" --storage="$storage" --max-restarts="$restarts")
# exec: xpk sends SIGTERM to the shell that reads this.
run xpk workload create "${flags[@]}" --command="exec bash experiments/launch/pod.sh $(quoted "$@")"
