#!/usr/bin/env bash
# A throw-away SLURM with accounting on this machine; every file lies under FOLDER. Needs root and, from Debian:
# slurm-wlm munge slurmdbd mariadb-server.
#   slurm.sh up FOLDER      then: . FOLDER/environment
#   slurm.sh down FOLDER
# Two virtual nodes of 4 CPUs and 8000 MB, each with two GPUs that are none; partitions cpu, gpu, and urgent, which
# preempts.
set -euo pipefail
export PATH=$PATH:/usr/sbin

usage="usage: slurm.sh up|down FOLDER"
action=${1:?$usage}
here=$(realpath -m "${2:?$usage}")
daemons=(munged mariadbd slurmdbd slurmctld slurmd-1 slurmd-2)

alive() { # PID: a zombie does not count, its parent may collect it late
    [ -e "/proc/$1/stat" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null
}

wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            echo "slurm.sh: waited in vain for: $*" >&2
            return 1
        fi
        sleep 0.05
    done
}

start() { # NAME COMMAND...: in the background, in a session of its own so that an interrupt of the tests does not reach it
    local name=$1
    shift
    setsid "$@" >"$here/log/$name.out" 2>&1 </dev/null &
    echo $! >"$here/$name.pid"
}

ended() { ! alive "$1"; }

down() {
    export SLURM_CONF=$here/slurm.conf
    if [ -s "$here/slurmctld.pid" ] && alive "$(<"$here/slurmctld.pid")"; then
        timeout 10 scancel --user="$(id -un)" || true
        wait_for 10 bash -c '[ -z "$(squeue -h)" ]' || true
    fi
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
        [ -s "$here/${daemons[i]}.pid" ] || continue
        pid=$(<"$here/${daemons[i]}.pid")
        rm "$here/${daemons[i]}.pid"
        alive "$pid" || continue
        kill -TERM "$pid"
        wait_for 15 ended "$pid" || kill -KILL "$pid"
    done
    for node in $(cat "$here/nodes" 2>/dev/null); do
        find "/sys/fs/cgroup/freezer/slurm_$node" "/sys/fs/cgroup/memory/slurm_$node" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
}

if [ "$action" = down ]; then
    down
    exit
fi

mkdir -p "$here"/{log,state,database,bin}
chmod 755 "$here"
trap 'tail -n 20 "$here"/log/* >&2; down' ERR
read -r controller node1 node2 accounting database < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(5)]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))')
# Two clusters on one machine have different nodes: control groups are named after the node and the job's number.
first=n1-$controller second=n2-$controller
echo "$first $second" >"$here/nodes"
host=$(hostname -s)
user=$(id -un)

# munge refuses a socket whose folder not everybody can enter.
(umask 077 && head -c 1024 /dev/urandom >"$here/munge.key")
start munged munged --foreground --key-file="$here/munge.key" --socket="$here/munge.socket" --pid-file="$here/munged.own" \
    --seed-file="$here/munge.seed" --log-file="$here/log/munged.log" --num-threads=2

mariadb-install-db --no-defaults --datadir="$here/database" --user=mysql --auth-root-authentication-method=normal \
    --skip-test-db >"$here/log/mariadb-install.log" 2>&1
mkdir -p "$here/database.run"
chown mysql "$here/database.run"
socket=$here/database.run/socket
start mariadbd mariadbd --no-defaults --datadir="$here/database" --user=mysql --bind-address=127.0.0.1 --port="$database" \
    --socket="$socket" --pid-file="$here/database.run/pid" --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
    --skip-name-resolve
wait_for 60 mariadb-admin --no-defaults --socket="$socket" -uroot ping
mariadb --no-defaults --socket="$socket" -uroot -e "create database slurm;
    create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm.* to slurm@'127.0.0.1'"

# The kernel's control groups stop a job with all of its processes and hold it to its memory. Where they are not to be had
# (a container), SLURM follows the process tree and looks at its memory now and then.
if [ -w /sys/fs/cgroup/freezer ] && [ -w /sys/fs/cgroup/memory ]; then
    tracking="ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/cgroup"
    cat >"$here/cgroup.conf" <<CONF
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
ConstrainCores=no
ConstrainDevices=no
CONF
else
    tracking="ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill"
fi

cat >"$here/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# A requeued job waits until the old credential has expired, otherwise for two minutes.
AuthInfo=socket=$here/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool-%n
SlurmctldPidFile=$here/slurmctld.own
SlurmdPidFile=$here/slurmd-%n.own
SlurmctldLogFile=$here/log/slurmctld.log
SlurmdLogFile=$here/log/slurmd-%n.log
MpiDefault=none
SwitchType=switch/none
$tracking
JobAcctGatherFrequency=task=1
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=2
MinJobAge=600
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$accounting
AccountingStoragePass=$here/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
NodeName=$first NodeHostname=$host NodeAddr=127.0.0.1 Port=$node1 CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=$second NodeHostname=$host NodeAddr=127.0.0.1 Port=$node2 CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=cpu Nodes=$first,$second Default=YES DefaultTime=10 MaxTime=INFINITE DefMemPerCPU=500 PriorityTier=1
PartitionName=gpu Nodes=$first,$second DefaultTime=10 MaxTime=INFINITE DefMemPerCPU=500 PriorityTier=1
PartitionName=urgent Nodes=$first,$second DefaultTime=10 MaxTime=INFINITE DefMemPerCPU=500 PriorityTier=10 PreemptMode=OFF
CONF
echo "NodeName=$first,$second Name=gpu File=/dev/zero,/dev/full" >"$here/gres.conf"
(umask 077 && cat >"$here/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$accounting
SlurmUser=$user
PidFile=$here/slurmdbd.own
LogFile=$here/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$database
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
CommitDelay=1
CONF
)
# Snakemake's plugin drops SLURM_CONF where it runs in a job, which a cluster with /etc/slurm does not need.
for command in sacct sacctmgr sbatch scancel scontrol sinfo squeue srun; do
    printf '#!/bin/sh\nSLURM_CONF=%s exec /usr/bin/%s "$@"\n' "$here/slurm.conf" $command >"$here/bin/$command"
    chmod +x "$here/bin/$command"
done
cat >"$here/environment" <<ENV
export SLURM_CONF=$here/slurm.conf PATH=$here/bin:\$PATH
ENV

export SLURM_CONF=$here/slurm.conf
wait_for 10 munge --no-input --socket="$here/munge.socket"
start slurmdbd slurmdbd -D
wait_for 30 sacctmgr -n list cluster
sacctmgr -i add cluster test >/dev/null
start slurmctld slurmctld -D -c
wait_for 30 scontrol ping
mkdir -p "$here/spool-$first" "$here/spool-$second"
start slurmd-1 slurmd -D -N "$first"
start slurmd-2 slurmd -D -N "$second"
idle() { [ "$(sinfo --noheader --Node --partition=cpu --format=%t | grep -c '^idle$')" = 2 ]; }
wait_for 30 idle
