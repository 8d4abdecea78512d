#!/usr/bin/env bash
# Trains on a Cloud TPU pod: installs this commit on all workers and starts training there in the background.
#
# Usage: experiments/launch/tpu_pod.sh [OPTIONS] TPU CONFIG WORKDIR [--config.KEY=VALUE ...]
#
#   TPU                 name of the TPU VM; it exists
#   CONFIG              a committed file, relative to the repository
#   WORKDIR             absolute path of a folder that all workers have mounted (Filestore or other NFS)
#   --zone ZONE         of the TPU; gcloud's own setting if not given
#   --project PROJECT   likewise
#   --no-install        the workers have this commit already
#   --dry-run           print the commands instead of running them
#   --help              this text
#
# The same command again goes on where the run stopped, also on another TPU with the same folder mounted.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

installs=1
flags=(--worker=all)
while [[ ${1:-} == -* ]]; do
  case $1 in
    --no-install) installs= && shift ;;
    --zone | --project) pass_on "$@"; shift 2 ;;
    *) common_option "$1"; shift ;;
  esac
done
[ $# -ge 3 ] || fail "TPU, CONFIG and WORKDIR are needed: see --help"
tpu=$1
shift
set_training "$@"
need_remote_paths "$1" "$2"
need git "it packs this commit"
[ -z "$(git rev-parse --show-prefix 2>&1)" ] || fail "start it in the repository's top folder, not in $PWD"
git cat-file -e "HEAD:./$1" 2> /dev/null || fail "CONFIG must be committed, which $1 is not: git add it and git commit"
need gcloud "see cloud.google.com/sdk"

tpu_vm=(gcloud compute tpus tpu-vm)
on_workers() { run "${tpu_vm[@]}" ssh "$tpu" "${flags[@]}" --command="$1"; }

# What follows is read by the workers' shell; $ is theirs. The number in focaljax.pid is that of focaljax itself.
# shellcheck disable=SC2016
{
  unless_training='if kill -0 "$(cat focaljax.pid 2> /dev/null)" 2> /dev/null; then echo "already training" >&2; exit 1; fi'
  # What an older commit left in this one's folders goes; .venv and data stay. The workers' own Python may be too old: uv
  # brings one.
  install='set -e; mkdir -p focaljax; tar -xzf focaljax.tar.gz --recursive-unlink -C focaljax; cd focaljax
PATH=$HOME/.local/bin:$PATH; python3 -m pip install --quiet --user uv; uv venv --quiet --allow-existing --python 3.12
uv pip install --quiet -c constraints.txt -e ".[train,tpu]"'
  # nohup: a lost connection, or the end of this one, does not end training.
  start='cd focaljax || exit 1; PATH=$PWD/.venv/bin:$PATH
nohup '$(quoted "${training[@]}")' >> ../focaljax.log 2>&1 < /dev/null &
echo $! > ../focaljax.pid'
}

if [ -n "$installs" ]; then
  archive=${TMPDIR:-/tmp}/focaljax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  run "${tpu_vm[@]}" scp "$archive" "$tpu:focaljax.tar.gz" "${flags[@]}"
  on_workers "$unless_training"$'\n'"$install"
fi
on_workers "$unless_training"$'\n'"$start"
[ -z "$dry_run" ] || exit 0

echo "$script: started; to look at it (worker 0 is not always the one that speaks), and to save and stop it:"
quoted "${tpu_vm[@]}" ssh "$tpu" "${flags[@]}" --command='tail -n 3 focaljax.log'
# shellcheck disable=SC2016
quoted "${tpu_vm[@]}" ssh "$tpu" "${flags[@]}" --command='kill -TERM $(cat focaljax.pid)'
