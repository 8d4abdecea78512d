#!/usr/bin/env bash
# Trains in several processes on this machine's CPU: the same program as on a pod, to try it before.
#
# Usage: experiments/launch/local.sh [OPTIONS] CONFIG WORKDIR [--config.KEY=VALUE ...]
#
#   --processes N   2 if not given
#   --port PORT     where process 0 listens; 29400 if not given
#   --dry-run       print the commands instead of running them
#   --help          this text
#
# Ctrl-C or SIGTERM saves in all of them and stops; the same command goes on.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

processes=2 port=29400
while [[ ${1:-} == -* ]]; do
  case $1 in
    --processes) processes=$(value "$@"); shift 2 ;;
    --port) port=$(value "$@"); shift 2 ;;
    *) common_option "$1"; shift ;;
  esac
done
need_number --processes "$processes" 1
need_number --port "$port" 1
set_training "$@"
need focaljax "source .venv/bin/activate"

started=()
stop() {
  signals=$((signals + 1))
  kill -TERM "${started[@]}" 2> /dev/null || true
}
trap stop INT TERM
for ((process = 0; process < processes; process++)); do
  command=(env JAX_PLATFORMS=cpu "${training[@]}"
    --coordinator "localhost:$port" --processes "$processes" --process "$process")
  if [ -n "$dry_run" ]; then
    quoted "${command[@]}"
  else
    "${command[@]}" &
    started+=($!)
  fi
done
[ -z "$dry_run" ] || exit 0

# Looked after in turn: the others would wait for one that failed, whichever it is.
exit_status=0 running=$processes
while [ "$running" -gt 0 ]; do
  sleep 0.2 || true # which Ctrl-C ends too
  for process in "${!started[@]}"; do
    ! kill -0 "${started[process]}" 2> /dev/null || continue
    status=0
    finished "${started[process]}" || status=$?
    if [ "$status" -ne 0 ] && [ "$exit_status" -eq 0 ]; then
      exit_status=$status
      stop
    fi
    unset "started[process]"
    running=$((running - 1))
  done
done
exit "$exit_status"
