#!/usr/bin/env bash
# A complete SLURM on one machine, to try a study on a laptop and for the tests. Two nodes with two simulated GPUs each,
# accounting, arrays, preemption and node failures; only on the loopback interface, without systemd, in 4 seconds.
#
#   devcluster.sh start  [DIR]              start it, with all state in DIR; existing state is reused
#   devcluster.sh stop   [DIR]              cancel the jobs and stop every daemon
#   devcluster.sh status [DIR]              show daemons and nodes; succeeds only if everything is up
#   devcluster.sh env    [DIR]              eval "$(devcluster.sh env)" makes sbatch, squeue and harness use it
#   devcluster.sh crash  DIR NODE           kill a node with its jobs, like a power failure
#   devcluster.sh revive DIR NODE           start the node again; NODE may be slurmctld: SLURM does not answer meanwhile
#
# Partitions: `high` preempts `main` (the default) and `cancel`; their jobs are requeued and cancelled, respectively.
# Settings of `start` are the environment variables below. Clusters with different DIR and PORT can run side by side.
set -euo pipefail

NODES=${NODES:-2}            # called n1, n2, ...
CPUS=${CPUS:-8}              # of each node; independent of the real machine
MEM=${MEM:-4000}             # MiB of each node
GPUS=${GPUS:-2}              # of each node; they only set CUDA_VISIBLE_DEVICES
PORT=${PORT:-16800}          # and the NODES + 1 ports after it
MAXARRAY=${MAXARRAY:-1001}   # SLURM's MaxArraySize: the largest index of an array is one less
ENFORCE=${ENFORCE:-}         # what accounting refuses: limits, wckeys, ... as in AccountingStorageEnforce
GRACE=${GRACE:-10}           # minimum seconds from a preempted job's signal to its end (SLURM checks periodically)

VERB=${1:-} DIR=$(realpath -m "${2:-${TMPDIR:-/tmp}/devcluster-$(id -un)}") NODE=${3:-}
export SLURM_CONF=$DIR/etc/slurm.conf PATH=$PATH:/usr/sbin
unset SLURMD_NODENAME        # set if we are called from a job; used below to identify processes of our own nodes

die() {
    echo "devcluster: $*" >&2
    exit 1
}

# ------------------------------------------------------------------------------------------------------- configuration

write_configuration() {
    local host user
    host=$(hostname -s) user=$(id -un)
    cat >"$DIR/etc/slurm.conf" <<END
ClusterName=devcluster
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$user
SlurmdUser=$user
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$DIR/slurmctld
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log

# cred_expire is also how long a requeued job waits before it starts again: 120 s by default.
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/run/munge.sock,cred_expire=5

# Submitit reads a job's state from sacct, which needs slurmdbd. The password is the path of munge's socket.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$DIR/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
${ENFORCE:+AccountingStorageEnforce=$ENFORCE}
TrackWCKey=$([[ $ENFORCE = *wckeys* ]] && echo yes || echo no)

# No cgroups, so no root rights are needed. Memory is polled, and jobs over the limit are killed.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
KillWait=5
# As many sites have it: srun ends what is left of a job so long after its first process has left.
WaitTime=10

# Schedule immediately; the default delays are for large clusters.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_min_age_reserve=0,default_queue_depth=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
MaxArraySize=$MAXARRAY
# Job ids that differ from those of a deleted cluster: otherwise submitit would mistake an old result for a new one.
FirstJobId=$(date +%-d%H%M%S)
MaxJobCount=10000
ReturnToService=2

# A preempted job gets the signal of sbatch --signal only with preempt_send_user_signal and a GraceTime.
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1

# config_overrides: use the numbers here, not those of the machine.
SlurmdParameters=config_overrides
GresTypes=gpu
$(for i in $(seq "$NODES"); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + 1 + i)) CPUs=$CPUS RealMemory=$MEM Gres=gpu:$GPUS"
done)
PartitionName=main Default=YES Nodes=ALL DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE
PartitionName=cancel Nodes=ALL DefaultTime=10 PriorityTier=1 PreemptMode=CANCEL GraceTime=$GRACE
PartitionName=high Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF
END
    # SLURM requires a device file for each GPU.
    : >"$DIR/etc/gres.conf"
    for ((i = 0; i < GPUS; i++)); do
        ln -sfn /dev/null "$DIR/dev/gpu$i"
        echo "Name=gpu File=$DIR/dev/gpu$i" >>"$DIR/etc/gres.conf"
    done
    install -m 600 /dev/stdin "$DIR/etc/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.sock
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=$user
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
CommitDelay=0
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StoragePass=none
StorageLoc=slurm_acct
END
    # Reachable only through a socket in DIR, and without flushing to disk: the data need not be durable.
    cat >"$DIR/etc/mariadb.cnf" <<END
[mariadbd]
datadir=$DIR/database
socket=$DIR/run/mariadb.sock
pid-file=$DIR/run/mariadbd.pid
tmpdir=$DIR/tmp
user=$user
skip-networking
skip-grant-tables
skip-name-resolve
performance_schema=OFF
innodb_buffer_pool_size=128M
innodb_log_file_size=8M
innodb_lock_wait_timeout=900
innodb_flush_log_at_trx_commit=0
innodb_flush_method=nosync
innodb_doublewrite=0
END
}

# ----------------------------------------------------------------------------------------------------------- processes
# No pid files, which outlive their processes. Every process of this cluster has its SLURM_CONF in the environment, and
# processes of its nodes also have SLURMD_NODENAME. Only slurmstepd, which supervises a job, overwrites its environment
# with its title; but it keeps the log of its node open.

processes() { # NAME... : pids of this cluster's daemons of these names
    local file
    for file in $(grep -lsxzF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ); do
        case " $* " in *" $(cat "${file%environ}comm" 2>/dev/null) "*) pid_of "$file" ;; esac
    done
}

processes_on() { # NODE : pids of everything that runs on it
    local file
    for file in $(grep -lsxzF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ); do
        if grep -qsxzF "SLURMD_NODENAME=$1" "$file"; then pid_of "$file"; fi
    done
    for file in $(find /proc/[0-9]*/fd -lname "$DIR/log/slurmd-$1.log" 2>/dev/null); do pid_of "$file"; done
}

pid_of() { # FILE in /proc
    cut -d/ -f3 <<<"$1"
}

kill_node() { # NODE : stop everything before killing, so that no slurmstepd can report its job as failed
    local signal
    for signal in STOP KILL; do processes_on "$1" | xargs --no-run-if-empty kill -$signal 2>/dev/null || true; done
}

nodes() {
    sed -n 's/^NodeName=\([^ ]*\).*/\1/p' "$SLURM_CONF" 2>/dev/null || true
}

spawn() { # NAME COMMAND... : run in the background, in a separate session, with its output in log/NAME.out
    local name=$1
    shift
    setsid "$@" </dev/null >>"$DIR/log/$name.out" 2>&1 &
}

wait_for() { # NAME COMMAND... : until the command succeeds; fail with the end of NAME's logs if NAME exits
    local name=$1 deadline=$((SECONDS + 60)) pid=$!
    shift
    until "$@" >/dev/null 2>&1; do
        if ! kill -0 "$pid" 2>/dev/null || ((SECONDS >= deadline)); then
            tail -qn 5 "$DIR/log/$name".{out,log} >&2 2>/dev/null || true
            die "$name does not start; its logs are in $DIR/log"
        fi
        sleep 0.05
    done
}

end() { # NAME... : terminate the daemons, and kill them after 10 s
    local pids deadline=$((SECONDS + 10))
    pids=$(processes "$@")
    # shellcheck disable=SC2086  # several pids are several words
    [ -z "$pids" ] || kill $pids 2>/dev/null || true
    while pids=$(processes "$@") && [ -n "$pids" ]; do
        # shellcheck disable=SC2086
        ((SECONDS < deadline)) || kill -KILL $pids 2>/dev/null || true
        sleep 0.05
    done
}

node_is_up() {
    sinfo --noheader --nodes="$1" --format=%T | grep -E '^(idle|mixed|allocated|completing)$' >/dev/null
}

resume_node() { # a node that is up already, because its slurmd registered first, cannot be resumed
    node_is_up "$1" || { scontrol update nodename="$1" state=resume && node_is_up "$1"; }
}

start_node() {
    SLURMD_NODENAME=$1 spawn "slurmd-$1" slurmd -D -N "$1"
}

# --------------------------------------------------------------------------------------------------------------- verbs

start() {
    local program missing=() port
    for program in munged mariadbd slurmdbd slurmctld slurmd sbatch; do
        command -v $program >/dev/null || missing+=($program)
    done
    [ ${#missing[@]} = 0 ] || die "${missing[*]} missing; on Debian and Ubuntu install them by
  sudo apt-get update
  sudo apt-get install --no-install-recommends slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core"
    [ -z "$(processes slurmctld)" ] || die "already running in $DIR"
    [ ${#DIR} -le 80 ] || die "the path $DIR is too long for a socket: choose a DIR of at most 80 characters"
    for ((port = PORT; port <= PORT + 1 + NODES; port++)); do
        if (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then die "port $port is in use: choose another PORT"; fi
    done

    mkdir -p "$DIR"/{etc,run,log,slurmctld,spool,database,tmp,dev}
    chmod 755 "$DIR"
    rm -f "$DIR"/run/*
    write_configuration
    trap stop EXIT # clean up if the cluster does not start

    [ -f "$DIR/etc/munge.key" ] || install -m 600 /dev/stdin "$DIR/etc/munge.key" < <(head -c 128 /dev/urandom)
    # --force: munged refuses folders that others could write to, such as those in /tmp.
    spawn munged munged --foreground --force --key-file="$DIR/etc/munge.key" --socket="$DIR/run/munge.sock" \
        --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/run/munge.seed"
    wait_for munged test -S "$DIR/run/munge.sock"

    if [ ! -d "$DIR/database/mysql" ]; then
        # Like mariadb-install-db, which would need the client programs.
        {
            printf '%s;\n' "create database slurm_acct" "create database mysql" "use mysql"
            cat /usr/share/mysql/mysql_system_tables.sql
        } | mariadbd --defaults-file="$DIR/etc/mariadb.cnf" --bootstrap >"$DIR/log/mariadbd.out" 2>&1 ||
            die "the database cannot be created; see $DIR/log/mariadbd.out"
    fi
    spawn mariadbd mariadbd --defaults-file="$DIR/etc/mariadb.cnf"
    wait_for mariadbd test -S "$DIR/run/mariadb.sock"
    # slurmdbd has no option for the socket of its database, but its client library reads this variable.
    MYSQL_UNIX_PORT=$DIR/run/mariadb.sock spawn slurmdbd slurmdbd -D
    wait_for slurmdbd sacctmgr --noheader list cluster
    sacctmgr --noheader list cluster format=cluster | grep -w devcluster >/dev/null ||
        sacctmgr --immediate add cluster devcluster >/dev/null
    if [ -n "$ENFORCE" ] && [ -z "$(sacctmgr --noheader list user "$(id -un)" format=defaultaccount | grep -w lab)" ]; then
        sacctmgr --immediate add account lab >/dev/null
        sacctmgr --immediate add user "$(id -un)" account=lab >/dev/null
    fi

    spawn slurmctld slurmctld -D
    wait_for slurmctld scontrol ping
    for i in $(seq "$NODES"); do start_node "n$i"; done
    for i in $(seq "$NODES"); do wait_for "slurmd-n$i" node_is_up "n$i"; done
    trap - EXIT
    echo "SLURM is up; use it in this shell by: eval \"\$($0 env $DIR)\""
}

stop() {
    if [ -n "$(processes slurmctld)" ]; then
        timeout 10 scancel --quiet --user="$(id -un)" || true
        for _ in $(seq 100); do # let jobs end before their daemons, so that they are in the accounting
            [ -n "$(timeout 5 squeue --noheader --states=R,CG,S)" ] || break
            sleep 0.1
        done
    fi
    for name in slurmd slurmctld slurmdbd mariadbd munged; do end $name; done
    for node in $(nodes); do kill_node "$node"; done # jobs outlive their slurmd
}

status() {
    local name count expected up=0
    for name in munged mariadbd slurmdbd slurmctld slurmd; do
        expected=1
        [ $name != slurmd ] || expected=$(nodes | wc -l)
        count=$(processes $name | wc -l)
        echo "$name: $count of $expected"
        [ "$count" = "$expected" ] || up=1
    done
    [ $up != 0 ] || sinfo --Node --format="%N %P %T"
    return $up
}

crash() {
    if [ "$NODE" = slurmctld ]; then
        end slurmctld
        return
    fi
    # Not only by `scontrol update state=down`: a running slurmd would start the job again on the same node.
    kill_node "$NODE"
    scontrol update nodename="$NODE" state=down reason=crash
}

revive() {
    if [ "$NODE" = slurmctld ]; then
        spawn slurmctld slurmctld -D
        wait_for slurmctld scontrol ping
        return
    fi
    start_node "$NODE"
    wait_for "slurmd-$NODE" resume_node "$NODE"
}

case $VERB in
    start | stop | status) $VERB ;;
    env) echo "export SLURM_CONF=$(printf %q "$SLURM_CONF")" ;;
    crash | revive)
        # grep reads to the end: after -q, at the first match, a writer's SIGPIPE would be the pipeline's status.
        { nodes; echo slurmctld; } | grep -x "$NODE" >/dev/null || die "no node '$NODE' in $DIR: usage: $0 $VERB DIR NODE"
        $VERB
        ;;
    *) die "usage: $0 start|stop|status|env [DIR], or $0 crash|revive DIR NODE" ;;
esac
