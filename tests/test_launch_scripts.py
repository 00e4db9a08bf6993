"""The shell scripts of launch/: clean, explained, and right in what they run; gcloud, srun and kubectl are played here."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = ("gke_jobset.sh", "local_processes.sh", "slurm.sbatch", "tpu_pod.sh")
POD = ["tpu_pod.sh", "--name=pod", "--zone=z", "--poll=0"]
TRAIN = ["--", "--config=c.py:a", "--workdir=/mnt/x y"]


def call(script, *words, path=None, **env):
    env = os.environ | {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]} | env
    return subprocess.run([LAUNCH / script, *words], capture_output=True, text=True, env=env, timeout=60)


@pytest.fixture
def play(tmp_path):
    """`play(name, lines)`: a program of that name that writes down what it was called with, then does `lines`."""
    log = tmp_path / "called"

    def play(name, lines=""):
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{log}\n{lines}\n')
        (tmp_path / name).chmod(0o755)
        return tmp_path

    play.called = lambda: log.read_text().splitlines() if log.exists() else []
    return play


def test_they_are_all_here_and_clean():
    assert sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")) == list(SCRIPTS)
    beside = Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
    done = subprocess.run([found, *SCRIPTS], cwd=LAUNCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag(script):
    done = call(script, "--help")
    assert done.returncode == 0 and done.stderr == "" and f"launch/{script}" in done.stdout
    cases = re.findall(r"^ +(--[^()]*)\)", (LAUNCH / script).read_text(), re.MULTILINE)
    flags = set(re.findall(r"--\w+", " ".join(cases)))
    assert "--dry_run" in flags and not [flag for flag in flags if f"  {flag}" not in done.stdout]


@pytest.mark.parametrize("words, says", [
    (["local_processes.sh"], "no COMMAND to run"),
    (["local_processes.sh", "--num_processes=0", "true"], "--num_processes=0; allowed: a whole number from 1"),
    (["local_processes.sh", "--processes=2", "true"], "unknown argument '--processes=2'"),
    (["slurm.sbatch", "--config=c.py"], "no --workdir"),
    (["slurm.sbatch", "--workdir=w"], "not in a Slurm job"),
    (["slurm.sbatch", "--attempts=x", "--workdir=w"], "--attempts=x; allowed"),
    (["tpu_pod.sh", "--name=a", "--zone=b"], "no verb; allowed: create, copy, run, resume, delete"),
    (["tpu_pod.sh", "run", "copy"], "two verbs, 'run' and 'copy'"),
    (["tpu_pod.sh", "create"], "--name and --zone are needed"),
    ([*POD, "run"], "no --workdir"),
    ([*POD, "create", "--spt"], "unknown argument '--spt'"),
    (["gke_jobset.sh", "--", "--workdir=/runs/a"], "--image and --claim are needed"),
    (["gke_jobset.sh", "--image=i", "--claim=c", "--", "--workdir=/elsewhere"], "no --workdir=/runs/..."),
    (["gke_jobset.sh", "--image=i", "--claim=c", "--topology=4", "--", "--workdir=/runs/a"], "--topology=4; allowed"),
    (["gke_jobset.sh", "--image=i", "--claim=c", "--topology=3x3", "--", "--workdir=/runs/a"], "9 chips"),
    (["gke_jobset.sh", "--image=i: x", "--claim=c", "--", "--workdir=/runs/a"], "image is 'i: x'; allowed"),
    (["gke_jobset.sh", "--image=i", "--claim=c", "--slices=0", "--", "--workdir=/runs/a"], "slices is '0'; allowed"),
])
def test_wrong_words_are_one_line(words, says):
    done = call(*words, SLURM_JOB_ID="")
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_without_gcloud_there_is_no_pod(tmp_path):
    done = subprocess.run([shutil.which("bash"), LAUNCH / POD[0], "create", *POD[1:]], capture_output=True, text=True,
                          env={"PATH": str(tmp_path)})
    assert done.returncode == 2 and "no gcloud; install" in done.stderr


def test_dry_runs_print_the_commands_and_run_nothing(play, tmp_path):
    path = play("gcloud") and play("srun") and play("kubectl") and play("scontrol")
    said = call(*POD, "resume", "--spot", "--project=p", "--setup=mount it", "--dry_run", *TRAIN, path=path).stdout
    for line in ("gcloud compute tpus queued-resources create pod --node-id=pod --zone=z --project=p "
                 "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot",
                 "jaxdiff train --coordinator=auto --quiet --config=c.py:a --workdir=/mnt/x\\ y",
                 "&& mount it && pip install", "queued-resources delete pod --zone=z --project=p --force --quiet"):
        assert line in said
    said = call("slurm.sbatch", "--dry_run", "--config=c.py", "--workdir=/w", path=path, SLURM_JOB_ID="").stdout
    assert said.splitlines()[0].endswith("jaxdiff train --coordinator=auto --quiet --no_evaluate --config=c.py --workdir=/w")
    assert "scontrol requeue JOB" in said
    words = ["--dry_run", "--devices=3", "--port=5", "prog", "a b"]
    said = call("local_processes.sh", *words, path=path, XLA_FLAGS="--keep").stdout
    assert said.splitlines()[1] == (
        "env JAX_PLATFORMS=cpu 'XLA_FLAGS=--keep --xla_force_host_platform_device_count=3' "
        "JAX_COORDINATOR_ADDRESS=127.0.0.1:5 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 prog 'a b'")
    assert play.called() == []


def test_the_jobset_is_a_manifest_of_what_was_asked():
    words = ["--image=r.io/j:1", "--claim=disk", "--topology=4x4x8", "--accelerator=tpu-v5p-slice", "--slices=2"]
    train = ["--config=c.py:a=1,b", "--workdir=/runs/x", '--config.name=say "hi" \\']
    spot, plain = (yaml.safe_load(call("gke_jobset.sh", "--dry_run", *words, *extra, "--", *train).stdout)
                   for extra in (["--spot"], []))
    assert spot["kind"] == "JobSet" and spot["apiVersion"].startswith("jobset.x-k8s.io/")
    (slices,) = spot["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["completionMode"]) == (2, 32, 32, "Indexed")
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] + container["args"] == ["jaxdiff", "train", "--coordinator=auto", "--quiet", *train]
    assert container["image"] == "r.io/j:1" and container["resources"]["limits"]["google.com/tpu"] == 4
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
                                   "cloud.google.com/gke-tpu-topology": "4x4x8", "cloud.google.com/gke-spot": "true"}
    del pod["nodeSelector"]["cloud.google.com/gke-spot"]
    assert spot == plain and "${" not in str(plain)


# A slice that is taken during the first training and during the second copying; the third training ends well.
CLOUD = """
cd "$(dirname "$0")"
was=$(cat state 2>/dev/null)
case "$*" in
  *" create "*) echo ACTIVE >state ;;
  *" delete "*) rm -f state ;;
  *" describe "*) [[ $was ]] && echo "$was" ;;
  *" scp "*) echo x >>copies; [[ $(wc -l <copies) != 2 ]] || { echo SUSPENDED >state; exit 1; } ;;
  *"jaxdiff train"*) echo x >>runs; [[ $(wc -l <runs) != 1 ]] || { echo SUSPENDING >state; exit 255; } ;;
esac
"""


def test_a_pod_that_is_taken_away_is_made_again(play):
    play("git")
    done = call(*POD, "resume", *TRAIN, path=play("gcloud", CLOUD))
    assert done.returncode == 0, done.stderr
    verbs = [next(word for word in ("create", "delete", "scp", "jaxdiff train", "pip install") if word in line)
             for line in play.called() if line.startswith("gcloud") and " describe " not in line]
    once = ["create", "scp", "pip install", "jaxdiff train"]
    assert verbs == [*once, "delete", "create", "scp", "delete", *once]


def test_a_training_that_fails_on_a_pod_that_stays_is_given_up(play):
    stays = 'case "$*" in *describe*) echo ACTIVE ;; *train*) exit 2 ;; esac'
    play("git")
    done = call(*POD, "resume", *TRAIN, path=play("gcloud", stays))
    assert done.returncode == 1 and "failed three times, and pod is still there" in done.stderr
    assert sum("jaxdiff train" in line for line in play.called()) == 3


@pytest.mark.parametrize("code, state, restarts, again", [
    (143, "RUNNING", "", True), (143, "RUNNING", "7", True), (143, "RUNNING", "100", False), (143, "CANCELLED", "", False),
    (0, "RUNNING", "", False), (2, "RUNNING", "", False), (137, "RUNNING", "", False),
])
def test_slurm_puts_back_what_saved_and_left(play, code, state, restarts, again):
    play("srun", f"exit {code}")
    path = play("scontrol", f'[[ $1 == show ]] && echo "JobId=8 JobState={state} Reason=None"')
    env = {"SLURM_JOB_ID": "8"} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    done = call("slurm.sbatch", "--config=c.py", "--workdir=/w", path=path, **env)
    assert done.returncode == code and ("scontrol requeue 8" in play.called()) == again
    assert play.called()[0].endswith("jaxdiff train --coordinator=auto --quiet --no_evaluate --config=c.py --workdir=/w")


LIVES = "trap 'sleep 0.2; echo saved; exit 143' TERM; echo up; for i in {1..200}; do sleep 0.05; done"


def started(*words):
    """The launcher with two processes that say `up`, and their numbers."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here, as behind nohup, is there too
    process = subprocess.Popen([LAUNCH / "local_processes.sh", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)
    signal.signal(signal.SIGINT, before)
    said = ""
    while said.count("up\n") < 2:
        said += (line := process.stdout.readline())
        assert line, said
    return process, [int(line.split()[-1]) for line in said.splitlines() if " process " in line]


def alive(number):
    return Path(f"/proc/{number}/exe").exists()


def test_processes_are_told_who_they_are():
    tell = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"'
    done = call("local_processes.sh", "--num_processes=3", "--port=4321", "bash", "-c", tell)
    assert done.returncode == 0
    assert sorted(line for line in done.stdout.splitlines() if " of " in line) == [
        f"[{i}] {i} of 3 at 127.0.0.1:4321" for i in range(3)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_all_once(number):
    process, children = started("bash", "-c", LIVES)
    process.send_signal(number)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 143 and said.count("saved") == 2 and not any(map(alive, children))


def test_who_dies_takes_the_others_along():
    process, children = started("--grace=1", "bash", "-c", LIVES)
    os.kill(children[1], signal.SIGKILL)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 137 and "[1] ended with code 137" in said and "saved" not in said
    assert not any(map(alive, children))


def test_who_left_on_a_signal_leaves_the_others_time():
    process, _ = started("--grace=1", "bash", "-c", LIVES.replace("sleep 0.2", "sleep $((JAX_PROCESS_ID * 2))"))
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 143 and said.count("saved") == 2, said


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="without setpriv (util-linux) a killed launcher cannot end them")
def test_a_killed_launcher_leaves_nobody():
    process, children = started("bash", "-c", LIVES)
    process.kill()
    process.communicate(timeout=20)
    deadline = time.time() + 5
    while any(map(alive, children)) and time.time() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, children))
