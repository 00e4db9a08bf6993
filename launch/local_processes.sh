#!/usr/bin/env bash
# Several processes of one run on this machine's CPU. They live and die together.
set -uo pipefail

usage() {
  cat <<'TEXT'
launch/local_processes.sh [--num_processes=2] [--devices=1] [--port=PORT] [--grace=5] [--dry_run] COMMAND...

Runs COMMAND as many times as told, each process with some virtual CPU devices of its own, joined through
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which `jaxdiff train` reads. Every line they print
begins with the number of its process.

  --num_processes=N  how many (default 2)
  --devices=D        devices of each (default 1)
  --port=PORT        where process 0 listens on 127.0.0.1 (default: a free port)
  --grace=SECONDS    once one of them has failed, the others are killed after this long (default 5); after one that left
                     on a signal, having saved, they have 60 s
  --dry_run          print the commands, and run nothing
  --help             this text

SIGTERM, and Ctrl-C as SIGTERM, is passed on, so that the run saves and leaves; a second one kills it. If one process
dies, so do the others, and if this script is killed, so are they (where setpriv is there, which Linux has).
The exit code is that of the first process that failed: 137 killed, 143 left on SIGTERM after saving; 0 when none failed.

  launch/local_processes.sh --devices=2 jaxdiff train --config=configs/digits.py:smoke --workdir=runs/two --quiet
TEXT
}

fail() {
  echo "local_processes.sh: $1; see launch/local_processes.sh --help" >&2
  exit 2
}

num=2 devices=1 port='' grace=5 dry=''
while (($#)); do
  case $1 in
    --num_processes=*) num=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --dry_run) dry=1 ;;
    --help | -h) usage && exit ;;
    --) shift && break ;;
    -*) fail "unknown argument '$1'" ;;
    *) break ;;
  esac
  shift
done
for pair in "num_processes=$num" "devices=$devices" "grace=$grace" ${port:+"port=$port"}; do
  [[ ${pair#*=} =~ ^[1-9][0-9]*$ ]] || fail "--$pair; allowed: a whole number from 1"
done
(($#)) || fail 'no COMMAND to run'
((BASH_VERSINFO[0] > 5 || (BASH_VERSINFO[0] == 5 && BASH_VERSINFO[1] >= 1))) || fail "bash $BASH_VERSION; needed: 5.1"

free_port() { # outside the range from which the kernel takes ports by itself; taken ones answer
  local try
  for try in {1..50}; do
    try=$((20000 + RANDOM % 10000))
    (: <>"/dev/tcp/127.0.0.1/$try") 2>/dev/null || { echo "$try" && return; }
  done
  fail 'no free port from 20000 to 29999'
}
port=${port:-$(free_port)}

# The devices are told in both ways that versions of jax know; a user's own XLA_FLAGS stay.
kept=''
for flag in ${XLA_FLAGS:-}; do
  [[ $flag == --xla_force_host_platform_device_count=* ]] || kept+="$flag "
done
words=(JAX_PLATFORMS=cpu "XLA_FLAGS=${kept}--xla_force_host_platform_device_count=$devices"
  "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$num")
# each in a session of its own: the terminal's Ctrl-C reaches this script alone, which passes it on once
alone=(setsid)
command -v setpriv >/dev/null && alone=(setpriv --pdeathsig KILL setsid)

show() { # a command as one would type it
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  echo "${line% }"
}

if [[ $dry ]]; then
  for ((i = 0; i < num; i++)); do
    show env "${words[@]}" "JAX_PROCESS_ID=$i" "$@"
  done
  exit
fi

pids=()
asked=''
# shellcheck disable=SC2317,SC2329 # the traps call these two
pass_on() {
  local pid signal=TERM
  [[ $asked ]] && signal=KILL
  asked=1
  for pid in "${pids[@]}"; do kill "-$signal" "$pid" 2>/dev/null; done
}
# shellcheck disable=SC2317,SC2329
end_all() {
  local pid
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null; done
}
trap pass_on TERM INT # as TERM both: what bash starts in the background ignores INT
trap end_all EXIT

for ((i = 0; i < num; i++)); do
  "${alone[@]}" env "${words[@]}" "JAX_PROCESS_ID=$i" "$@" > >(trap '' TERM INT && exec sed -u "s/^/[$i] /") 2>&1 &
  pids+=($!)
  echo "[$i] process $!"
done

code=0 left=$num deadline=''
while ((left)); do
  gone='' ended=0
  { wait -n -p gone "${pids[@]}"; } 2>/dev/null || ended=$? # silent, for bash would tell at length who was killed
  [[ ${gone:-} ]] || continue # a trap came between
  left=$((left - 1))
  for i in "${!pids[@]}"; do
    [[ ${pids[i]} == "$gone" ]] && unset 'pids[i]' && number=$i
  done
  if ((ended && !code)); then
    code=$ended
    echo "[$number] ended with code $ended" >&2
    if ((left)); then
      ((ended == 143 || ended == 130)) && grace=60
      (sleep "$grace" && for pid in "${pids[@]}"; do kill -KILL -- "-$pid"; done) >/dev/null 2>&1 &
      deadline=$!
    fi
  fi
done
[[ $deadline ]] && kill "$deadline" 2>/dev/null
exit "$code"
