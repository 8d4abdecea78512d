# shellcheck shell=bash
# What the launchers share; sourced by them. Runs in bash 3.2 too, which is that of macOS.

script=${0##*/}
dry_run=
signals=0

# Prints the comment at the script's head.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

fail() {
  echo "$script: $1" >&2
  exit 2
}

# Prints words as one line that any shell reads as the same words.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./=:,@%+-]*) line+=" '${word//\'/$quote}'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '%s\n' "${line# }"
}

# Runs a command; with --dry-run prints it.
run() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

need() {
  [ -n "$dry_run" ] || command -v "$1" > /dev/null || fail "$1 is not installed here: $2"
}

# The value of an option that has one: $1 is the option, $2 what follows it.
value() {
  case ${2:-} in
    '' | --*) fail "$1 needs a value: see --help" ;;
    *) printf '%s' "$2" ;;
  esac
}

# Adds an option that has a value to the array `flags`, as --OPTION=VALUE.
pass_on() {
  local given
  given=$(value "$@")
  flags+=("$1=$given")
}

# Does what an option asks for that all launchers have. $2 is what to say of one that none has.
common_option() {
  case $1 in
    --help) usage && exit ;;
    --dry-run) dry_run=1 ;;
    *) fail "unknown option $1: ${2:-see --help}" ;;
  esac
}

# Fails unless $2, the value of the option $1, is a number from $3 on.
need_number() {
  if [[ ! $2 =~ ^[0-9]+$ || $2 == 0?* || $2 -lt $3 ]]; then
    fail "$1 must be a number from $3 on, got $2"
  fi
}

# Makes the array `training` of CONFIG WORKDIR [--config.KEY=VALUE ...].
set_training() {
  [ $# -ge 2 ] || fail "CONFIG and WORKDIR are needed: see --help"
  [ -f "$1" ] || fail "no config file $1: name one as seen from $PWD, such as configs/shapes.py"
  case $2 in
    --*) fail "WORKDIR is needed after CONFIG, got $2" ;;
    *://*) fail "WORKDIR must be a folder, got $2: mount the bucket, or use NFS" ;;
  esac
  local override
  for override in "${@:3}"; do
    case $override in
      --config.*=*) ;;
      *) fail "unexpected $override after WORKDIR: options come first, settings are given as --config.KEY=VALUE" ;;
    esac
  done
  # shellcheck disable=SC2034 # the launchers use it
  training=(focaljax train --config "$1" --workdir "$2" "${@:3}")
}

# For machines elsewhere: the config is taken from their copy of the repository, the workdir from what they have mounted.
need_remote_paths() {
  case $1 in /*) fail "CONFIG must be relative to the repository, got $1" ;; esac
  case $2 in /*) ;; *) fail "WORKDIR must be an absolute path there, got $2" ;; esac
}

# Waits for a process of this shell and returns its status, whatever signals this shell handles meanwhile.
finished() {
  local before status
  while true; do
    before=$signals status=0
    wait "$1" || status=$?
    [ "$signals" != "$before" ] || return "$status"
  done
}
