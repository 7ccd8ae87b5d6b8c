#!/usr/bin/env bash
# Starts a SLURM of one node on this machine, runs tests/slurm_sweep.py against it, and stops what it has started:
# bash tests/try_slurm.sh PYTHON. Exit code 77: it cannot be done here, and the one line says why.
set -euo pipefail
python=$1
not_here() { echo "SLURM is not tried here: $1"; exit 77; }

[ "$(id -u)" = 0 ] || not_here "only root may start its daemons"
if ! command -v slurmctld slurmd munged >/dev/null; then
    command -v apt-get >/dev/null || not_here "slurmctld, slurmd and munged are missing, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends slurm-wlm munge; } \
        >/dev/null 2>&1 || not_here "apt-get cannot install slurm-wlm and munge"
fi
PATH=$PATH:/usr/sbin

scratch=$(mktemp -d)
chmod 755 "$scratch" # munge's clients pass through it
daemons=()
stop() {
    scancel --user=root >/dev/null 2>&1 || true
    for _ in $(seq 50); do # a job's processes are slurmd's to end
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 0.2
    done
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
        kill "${daemons[i]}" 2>/dev/null || true
        wait "${daemons[i]}" 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap stop EXIT
trap 'exit 130' INT TERM

# Nothing of this touches /etc, /run or /var: a SLURM that is there already goes on beside it.
port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
node=$(hostname -s)
mkdir "$scratch/state" "$scratch/spool" "$scratch/munge"
head -c 1024 /dev/urandom >"$scratch/munge/key"
chmod 400 "$scratch/munge/key"
cat >"$scratch/slurm.conf" <<CONF
ClusterName=lorabench
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$scratch/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=1
SchedulerParameters=sched_interval=2
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd.pid
NodeName=$node NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$scratch/slurm.conf

munged --foreground --force --num-threads=2 --key-file="$scratch/munge/key" --socket="$scratch/munge/socket" \
    --pid-file="$scratch/munge/pid" --seed-file="$scratch/munge/seed" --log-file="$scratch/munge/log" 2>"$scratch/munged.err" &
daemons+=($!)
for _ in $(seq 50); do [ -S "$scratch/munge/socket" ] && break; sleep 0.1; done
slurmctld -D >"$scratch/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D -N "$node" >"$scratch/slurmd.log" 2>&1 &
daemons+=($!)
for _ in $(seq 150); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
    sleep 0.2
done
sinfo --noheader --format=%T 2>/dev/null | grep -q idle || {
    tail -n 5 "$scratch"/munged.err "$scratch"/slurmctld.log "$scratch"/slurmd.log
    not_here "its daemons do not come up"
}
echo "$(sinfo --version): one node, no accounting"
"$python" -m tests.slurm_sweep "$scratch/sweeps"
