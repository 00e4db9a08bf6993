#!/usr/bin/env bash
# A training on a TPU slice of Google Compute Engine: create it, copy the code, run on all workers, go on after pre-emption.
set -uo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_pod.sh VERB --name=NAME --zone=ZONE [OPTIONS] [-- WORDS OF jaxdiff train...]

Verbs, in the order in which they are needed:
  create   ask for the slice (a queued resource) and wait until it is there
  copy     copy this repository, as committed, to every worker, run --setup there, and install jaxdiff and jax[tpu]
  run      `jaxdiff train WORDS` on every worker; ends when it ends
  resume   all of the above, and again whenever the slice was taken away, until the training is done
  delete   give the slice back

Options:
  --name=NAME            of the slice
  --zone=ZONE            such as us-west4-a
  --project=PROJECT      (default: gcloud's)
  --accelerator=TYPE     v5litepod-16, v6e-64, v5p-128, ... (default v5litepod-16)
  --runtime=VERSION      software of the machines (default v2-alpha-tpuv5-lite, which is v5e's)
  --spot                 pay less, and lose the slice whenever somebody pays more
  --setup=COMMAND        run on every worker at each copying: mount what --workdir lies on, which all workers must see
  --attempts=N           how often `resume` starts again (default 100)
  --poll=SECONDS         between two looks at the slice's state (default 30)
  --dry_run              print the commands, and run nothing
  --help                 this text

The run saves on SIGTERM, which a machine about to be taken sends some 30 s ahead, and the same command goes on from the
newest checkpoint, on as many chips as there then are. So `resume` may be stopped and started too. It gives up when the
training fails three times in a row on a slice that is still there. The slice costs money from `create` to `delete`, which
`resume` does not do at the end.

  launch/tpu_pod.sh resume --name=adm64 --zone=us-west4-a --spot \
    --setup='sudo mkdir -p /mnt/runs && (mountpoint -q /mnt/runs || sudo mount -t nfs 10.0.0.2:/runs /mnt/runs)' \
    -- --config=configs/imagenet64.py --workdir=/mnt/runs/adm64
TEXT
}

fail() {
  echo "tpu_pod.sh: $1; see launch/tpu_pod.sh --help" >&2
  exit 2
}

verb='' name='' zone='' project='' accelerator=v5litepod-16 runtime=v2-alpha-tpuv5-lite spot='' setup='' attempts=100 poll=30
dry=''
while (($#)); do
  case $1 in
    create | copy | run | resume | delete) [[ ! $verb ]] || fail "two verbs, '$verb' and '$1'" && verb=$1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=1 ;;
    --setup=*) setup=${1#*=} ;;
    --attempts=*) attempts=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --dry_run) dry=1 ;;
    --help | -h) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'" ;;
  esac
  shift
done
train=("$@")
[[ $verb ]] || fail 'no verb; allowed: create, copy, run, resume, delete'
[[ $name && $zone ]] || fail '--name and --zone are needed'
for pair in "attempts=$attempts" "poll=$poll"; do
  [[ ${pair#*=} =~ ^[0-9]+$ ]] || fail "--$pair; allowed: a whole number"
done
if [[ $verb == run || $verb == resume ]]; then
  [[ " ${train[*]-} " == *" --workdir"* ]] || fail "no --workdir for jaxdiff train; mend: -- --config=... --workdir=..."
fi
[[ $dry ]] || command -v gcloud >/dev/null || fail 'no gcloud; install the Google Cloud CLI, or add --dry_run'

where=("--zone=$zone" ${project:+"--project=$project"})
queued=(gcloud compute tpus queued-resources)
machine=(gcloud compute tpus tpu-vm)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

show() { # a command as one would type it
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  echo "${line% }"
}

do_it() {
  if [[ $dry ]]; then
    show "$@"
  else
    "$@"
  fi
}

everywhere() { do_it "${machine[@]}" ssh "$name" "${where[@]}" --worker=all "--command=$1"; }

state() { # ACTIVE, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDED, FAILED, ...; empty where there is no such slice
  "${queued[@]}" describe "$name" "${where[@]}" '--format=value(state.state)' 2>/dev/null
}

create() {
  do_it "${queued[@]}" create "$name" "--node-id=$name" "${where[@]}" "--accelerator-type=$accelerator" \
    "--runtime-version=$runtime" ${spot:+--spot} || return
  if [[ $dry ]]; then
    echo "# every $poll s, until it says ACTIVE:"
    do_it "${queued[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
    return
  fi
  wait_for_it
}

wait_for_it() {
  local now
  until now=$(state) && [[ $now == ACTIVE ]]; do
    [[ $now != FAILED && $now != SUSPEND* && $now ]] || { echo "tpu_pod.sh: $name is ${now:-gone}" >&2 && return 1; }
    echo "tpu_pod.sh: $name is $now"
    sleep "$poll"
  done
}

copy() {
  # what git knows, not runs and caches
  local archive
  archive=$(mktemp -d)/jaxdiff.tar.gz
  do_it git -C "$root" archive --format=tar.gz "--output=$archive" HEAD &&
    do_it "${machine[@]}" scp "$archive" "$name:jaxdiff.tar.gz" "${where[@]}" --worker=all &&
    everywhere "mkdir -p jaxdiff && tar -xzf jaxdiff.tar.gz -C jaxdiff${setup:+ && $setup} && pip install -q -e 'jaxdiff[demo]' 'jax[tpu]'"
  local code=$?
  rm -rf "$(dirname "$archive")"
  return "$code"
}

run() {
  local words
  printf -v words ' %q' "${train[@]}"
  everywhere "cd jaxdiff && PATH=\$HOME/.local/bin:\$PATH jaxdiff train --coordinator=auto --quiet$words"
}

delete() { do_it "${queued[@]}" delete "$name" "${where[@]}" --force --quiet; }

resume() {
  if [[ $dry ]]; then
    create && copy && run
    echo '# when the slice was taken away, from the beginning, after:'
    delete
    return
  fi
  local try now failed=0
  for ((try = 1; try <= attempts; try++)); do
    now=$(state)
    if [[ $now == SUSPEND* || $now == FAILED || $now == DELETING ]]; then
      delete
      now=''
    fi
    if [[ ! $now ]]; then
      create || { sleep "$poll" && continue; }
    else
      wait_for_it || continue
    fi
    copy && run && return
    sleep "$poll" # a slice that is being taken says so a little later
    now=$(state)
    if [[ $now == ACTIVE ]]; then
      ((++failed < 3)) || { echo "tpu_pod.sh: failed three times, and $name is still there" >&2 && return 1; }
    else
      failed=0
    fi
    echo "tpu_pod.sh: start $try of $attempts ended, $name is ${now:-gone}"
  done
  echo "tpu_pod.sh: given up after $attempts starts" >&2
  return 1
}

"$verb"
