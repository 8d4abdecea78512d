#!/usr/bin/env bash
# What runs in each pod of gke_jobset.sh and gke_xpk.sh: training, that fails unless it came to its end.
#
# Usage: experiments/launch/pod.sh CONFIG WORKDIR [ARGUMENTS OF focaljax train ...]
#
#   --help   this text
#
# A run that SIGTERM stops exits with 0, and Kubernetes would take that for its end and not start it again. So where the
# last step's checkpoint is missing, the first pod exits with 1.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

[ "${1:-}" != --help ] || { usage && exit; }
[ $# -ge 2 ] || fail "CONFIG and WORKDIR are needed: see --help"
need focaljax "it belongs into the image"

workdir=$2
focaljax train --config "$1" --workdir "$workdir" "${@:3}" &
trained=$!
# The first process of a container gets the signal, and only that one.
trap 'signals=$((signals + 1)); kill -TERM "$trained" 2> /dev/null || true' TERM
finished "$trained" || exit $?
[ "${JOB_COMPLETION_INDEX:-0}" = 0 ] || exit 0
read_steps='import json, sys; print(json.load(open(sys.argv[1]))["optim"]["steps"])'
steps=$(python3 -c "$read_steps" "$workdir/config.json")
[ -d "$workdir/checkpoints/$steps" ] || { echo "$script: stopped before step $steps" >&2 && exit 1; }
