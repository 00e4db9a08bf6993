#!/usr/bin/env bash
# Fill in launch/gke_jobset.yaml and hand it to the cluster.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/gke_jobset.sh --image=IMAGE --claim=CLAIM [OPTIONS] [--dry_run] -- WORDS OF jaxdiff train...

Starts `jaxdiff train WORDS` on TPU slices of the GKE cluster that kubectl points to, where JobSet is installed.

  --image=IMAGE         a container image with jaxdiff, jax[tpu] and the configs
  --claim=CLAIM         a volume claim that many pods may write (ReadWriteMany), such as Filestore's; it holds the workdir
  --mount=DIR           where it is mounted (default /runs)
  --name=NAME           of the JobSet (default jaxdiff)
  --accelerator=TYPE    (default tpu-v5-lite-podslice, which is v5e; tpu-v5p-slice; tpu-v6e-slice)
  --topology=AxB[xC]    chips of a slice (default 4x4)
  --chips_per_host=N    chips of a machine of that slice (default 4)
  --slices=N            (default 1)
  --spot                on nodes that may be taken away
  --restarts=N          how often it may be started again (default 100)
  --dry_run             print the filled-in file, and do nothing
  --help                this text

  launch/gke_jobset.sh --image=REGISTRY/jaxdiff --claim=runs --spot -- --config=configs/imagenet64.py --workdir=/runs/adm64
  kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=jaxdiff      what it says
  kubectl delete jobset jaxdiff                                  end it, after a save
TEXT
}

fail() {
  echo "gke_jobset.sh: $1; see launch/gke_jobset.sh --help" >&2
  exit 2
}

declare -A is=([NAME]=jaxdiff [MOUNT]=/runs [ACCELERATOR]=tpu-v5-lite-podslice [TOPOLOGY]=4x4 [CHIPS]=4 [SLICES]=1
  [SPOT]=false [RESTARTS]=100 [IMAGE]='' [CLAIM]='')
dry=''
while (($#)); do
  case $1 in
    --chips_per_host=*) is[CHIPS]=${1#*=} ;;
    --image=* | --claim=* | --mount=* | --name=* | --accelerator=* | --topology=* | --slices=* | --restarts=*)
      word=${1%%=*}
      word=${word#--}
      is[${word^^}]=${1#*=}
      ;;
    --spot) is[SPOT]=true ;;
    --dry_run) dry=1 ;;
    --help | -h) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'" ;;
  esac
  shift
done
[[ ${is[IMAGE]} && ${is[CLAIM]} ]] || fail '--image and --claim are needed'
[[ " $* " == *" --workdir=${is[MOUNT]}/"* ]] || fail "no --workdir=${is[MOUNT]}/... for jaxdiff train, on the mounted volume"
for word in CHIPS SLICES RESTARTS; do
  [[ ${is[$word]} =~ ^[1-9][0-9]*$ ]] || fail "${word,,} is '${is[$word]}'; allowed: a whole number from 1"
done
[[ ${is[TOPOLOGY]} =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology=${is[TOPOLOGY]}; allowed: AxB or AxBxC"
for word in NAME IMAGE CLAIM MOUNT ACCELERATOR; do
  [[ ${is[$word]} =~ ^[A-Za-z0-9_./:@-]+$ ]] || fail "${word,,} is '${is[$word]}'; allowed: letters, digits and ._-/:@"
done
chips=$((${is[TOPOLOGY]//x/*}))
((chips % is[CHIPS] == 0)) || fail "${is[TOPOLOGY]} is $chips chips, which are no machines of ${is[CHIPS]}"
is[HOSTS]=$((chips / is[CHIPS]))

is[ARGS]=''
for word; do # as JSON, which YAML reads
  word=${word//\\/\\\\}
  is[ARGS]+="${is[ARGS]:+, }\"${word//\"/\\\"}\""
done
is[ARGS]="[${is[ARGS]}]"

filled=$(grep -v '^#' "$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
for word in "${!is[@]}"; do
  filled=${filled//"\${$word}"/"${is[$word]}"}
done
# a node that is not spot has no such label
[[ ${is[SPOT]} == true ]] || filled=$(grep -v gke-spot <<<"$filled")
if [[ $dry ]]; then
  echo '# kubectl apply -f -'
  echo "$filled"
else
  kubectl apply -f - <<<"$filled"
fi
