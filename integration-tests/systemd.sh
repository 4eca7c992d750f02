#!/bin/bash
# The Debian packages on a Debian machine with a real systemd, as docs/install.md tells it: installed, started, killed,
# halted, stopped, rebooted, upgraded, removed, purged.
#
#   integration-tests/systemd.sh [directory of the packages: target/pack] [directory of the machine: target/debian]
#
# The machine is a container (systemd-nspawn) on a minimal Debian that debootstrap fetches once; what a run does to it
# lies in memory and ends with it. It has a network of its own, and can write nothing of this host. Needs root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. integration-tests/walk/steps.sh
die() {
  echo "systemd: $*" >&2
  exit 1
}

if [[ -z ${SYSTEMD_WORK:-} ]]; then
  [[ $(id -u) == 0 ]] || die "needs root"
  for tool in debootstrap systemd-nspawn; do
    command -v $tool >/dev/null || die "missing: $tool (apt-get install debootstrap systemd-container)"
  done
  SYSTEMD_WORK=$(mktemp -d)
  export SYSTEMD_WORK
  # What is mounted there is mounted in the namespace only.
  trap 'rmdir "$SYSTEMD_WORK"' EXIT
  unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
    "integration-tests/${BASH_SOURCE[0]##*/}" "$@"
  exit
fi

packages=$(realpath "${1:-target/pack}")
debian=$(realpath -m "${2:-target/debian}")
docs=$PWD/docs
PATIENCE=120 # seconds for one step
ADDRESS=10.78.0.1
TABLE=stock
UNITS=(pegasus-meta pegasus-replica pegasus-collector)
PORTS=(34601 34801 34101)

if [[ ! -e $debian/complete ]]; then
  chapter "" "debootstrap"
  debootstrap --variant=minbase --include=systemd-sysv,dbus,procps,curl bookworm "$debian" >"$SYSTEMD_WORK.log" ||
    die "see $SYSTEMD_WORK.log"
  rm "$SYSTEMD_WORK.log"
  touch "$debian/complete"
fi

goodbye() {
  if [[ $1 != 0 ]]; then
    cat "$TMPDIR"/{console,apt} || true
    [[ -z ${init:-} ]] || guest journalctl --no-pager --lines 60 --unit 'pegasus-*' || true
  fi
  exec 2>/dev/null
  # All in this namespace, of which this script is the first process; nowhere else.
  [[ $$ != 1 ]] || kill -9 -1 || true
}
trap 'goodbye $?' EXIT

mount -t tmpfs -o mode=755 machine "$SYSTEMD_WORK"
export TMPDIR=$SYSTEMD_WORK
mkdir "$TMPDIR"/{upper,overlay,machine}
machine=$TMPDIR/machine
mount -t overlay -o "lowerdir=$debian,upperdir=$TMPDIR/upper,workdir=$TMPDIR/overlay" machine "$machine"
for kind in server tools; do
  cp "$(ls -t "$packages"/pegasus-$kind[_-]*.deb | head -n 1)" "$machine/root/"
done
# From here on neither this script nor the machine can write on this host.
mount -t tmpfs run /run
mount -o remount,bind,ro /

# In there, so that it cannot be this host's network that is changed.
unshare --net bash -ec "
  ip link set lo up
  ip link add eth0 type veth peer name nobody
  ip address add $ADDRESS/24 dev eth0
  ip link set nobody up
  ip link set eth0 up
  touch $TMPDIR/network
  exec sleep infinity" &
network=/proc/$!/ns/net
patiently test -e "$TMPDIR/network"

guest() { nsenter --target "$init" --mount --uts --ipc --net --pid --cgroup -- "$@"; }
guest_doc() {
  said "$1"
  guest bash -c "cd && $(filled "$@")"
}
shell() { guest pegasus_shell --meta $ADDRESS:34601 "$@"; }
of() { guest systemctl show --value --property "$2" "$1"; }
pids() { local unit; for unit in "${UNITS[@]}"; do of "$unit" MainPID; done; }
power_on() {
  SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --boot --directory="$machine" --machine=pegasus \
    --register=no --keep-unit --network-namespace-path=$network --link-journal=no --resolv-conf=off --timezone=off \
    --console=pipe </dev/null >"$TMPDIR/console" 2>&1 &
  nspawn=$!
  patiently eval "pgrep --parent $nspawn --exact systemd"
  init=$answer
  patiently eval '[[ $(guest systemctl is-system-running) =~ running|degraded ]]'
}
serving() {
  local n
  for n in "${!UNITS[@]}"; do
    [[ $(of "${UNITS[n]}" StatusText) == serving ]] || die "${UNITS[n]}: $(of "${UNITS[n]}" StatusText)"
    patiently guest curl --silent --show-error --fail "http://$ADDRESS:${PORTS[n]}/readyz"
  done
}
restarted() { # after that many starts
  local unit
  for unit in "${UNITS[@]}"; do [[ $(of "$unit" NRestarts) == "$1" && $(of "$unit" ActiveState) == active ]] || return 1; done
}
reads() { patiently shell get $TABLE fruit apple; shows '"5"' <<<"$answer"; }

power_on

chapter install.md "Start, by systemd"
guest_doc 'apt-get install ./pegasus-server_*.deb' 'apt-get install=apt-get install --yes ./pegasus-tools_*.deb' >"$TMPDIR/apt" 2>&1
for unit in "${UNITS[@]}"; do
  [[ $(of $unit ActiveState) == inactive && $(of $unit UnitFileState) == disabled ]] || die "$unit was started"
  guest systemd-analyze --no-pager security $unit.service | shows 'Overall exposure level .* 1\.2 OK'
done
guest sed -i /etc/pegasus/pegasus.env -e 's/^#\(.*CLUSTER_NAME\)=.*/\1=check/' \
  -e "s/^#\(.*META_SERVER_LIST\)=.*/\1=$ADDRESS:34601/" -e 's#^\(.*DATA_DIRS\)=#&ssd1:/data/ssd1,ssd2:/data/ssd2#'
# Of a machine alone every table has one copy.
guest sed -i 's/^max_replica_count = 3/max_replica_count = 1/' /etc/pegasus/config.ini
guest bash -c 'echo PEGASUS__REPLICATION__MUTATION_2PC_MIN_REPLICA_COUNT=1 >/etc/pegasus/replica.env'
said 'systemctl edit pegasus-replica' '[Service]' 'ReadWritePaths=-/data/ssd1 -/data/ssd2' 'belong to user `pegasus`'
guest install -d -o pegasus -g pegasus /data/ssd1 /data/ssd2
guest bash -c 'mkdir $0 && cat >$0/override.conf && systemctl daemon-reload' /etc/systemd/system/pegasus-replica.service.d \
  <<<$'[Service]\nReadWritePaths=-/data/ssd1 -/data/ssd2'
guest_doc 'systemctl enable --now pegasus-meta pegasus-replica pegasus-collector'
serving
guest curl --silent "http://$ADDRESS:34801/config?name=mutation_2pc_min_replica_count" | shows '"origin":"environment'
said 'systemd-run --quiet --pipe --wait'
check=$(sed -n '/^systemd-run --quiet/,/check-config$/p' "$docs/install.md")
guest bash -c "$check" | shows 'no mistakes'
if told=$(guest bash -c "${check/--check-config/--remove-metadata check}" 2>&1); then die "removed while all run"; fi
shows 'somebody listens on' <<<"$told"
shell create $TABLE -p 8 -r 1
shell set $TABLE fruit apple 5 | shows OK
reads

chapter "" "Who they are, and what they may"
for unit in "${UNITS[@]}"; do
  status=$(guest cat "/proc/$(of "$unit" MainPID)/status")
  for line in 'NoNewPrivs:\s*1' 'Seccomp:\s*2' 'CapEff:\s*0+$' 'CapBnd:\s*0+$'; do
    shows "^$line" <<<"$status"
  done
  [[ $(guest ps -o user= -p "$(of "$unit" MainPID)") == pegasus ]] || die "$unit is not of user pegasus"
done
replica=$(of pegasus-replica MainPID)
guest ps -L -o comm=,nice= -p "$replica" | shows '^copy-0 +10$'
[[ -z $(guest find /var/lib/pegasus /data/ssd1 /data/ssd2 ! -user pegasus) ]] || die "files of other users"
[[ $(guest stat -c %a /var/lib/pegasus) == 750 ]] || die "others may read the data"
for role in meta replica collector; do guest test -s /var/lib/pegasus/$role/log/$role.log; done

chapter "" "A program that is killed is started again, and so is one that hangs"
before=$(pids)
guest systemctl kill --kill-who=main --signal=KILL "${UNITS[@]}"
patiently restarted 1
serving
reads
guest systemctl kill --kill-who=main --signal=STOP "${UNITS[@]}"
sleep 20
restarted 1 || die "ended before its time"
patiently restarted 2
for unit in "${UNITS[@]}"; do guest journalctl --unit $unit | shows 'Watchdog timeout \(limit 30s\)'; done
serving
reads
[[ -z $(grep -Fx "$before" <(pids)) ]] || die "some process is still the old one"

chapter "" "A configuration that cannot work is not tried again"
guest bash -c 'echo PEGASUS__META_SERVER__COORDINATION=nothing >/etc/pegasus/meta.env'
if guest systemctl restart pegasus-meta 2>/dev/null; then die "started with a wrong configuration"; fi
sleep 5
[[ $(of pegasus-meta ActiveState) == failed && $(of pegasus-meta ExecMainStatus) == 78 ]] || die "it is tried again"
guest rm /etc/pegasus/meta.env
guest systemctl restart pegasus-meta
serving

chapter "" "A disk is missing, and comes back"
guest systemctl stop pegasus-replica
guest mv /data/ssd2 /data/away
guest systemctl start pegasus-replica
guest grep -q 'going on without this disk disk="ssd2"' /var/lib/pegasus/replica/log/replica.log
guest mv /data/away /data/ssd2
guest systemctl restart pegasus-replica
serving
reads

chapter operations.md "Stop, restart"
said 'SIGTERM (`systemctl stop`)' 'within 60 s'
for unit in "${UNITS[@]}"; do
  begin=$SECONDS
  guest systemctl stop $unit
  ((SECONDS - begin <= 60)) || die "$unit takes $((SECONDS - begin)) s to stop"
  [[ $(of $unit Result) == success && $(of $unit ExecMainStatus) == 0 ]] || die "$unit does not end well"
done

chapter "" "The machine starts again"
guest systemctl reboot
wait $nspawn || true # 133: once more, please
power_on
patiently restarted 0
serving
reads

chapter upgrade.md "Order"
newer=$TMPDIR/newer
dpkg-deb --raw-extract "$machine"/root/pegasus-server_*.deb "$newer"
sed -i 's/^Version: .*/Version: 999/' "$newer/DEBIAN/control"
echo '; Something new.' >>"$newer/etc/pegasus/config.ini"
echo '# Something new.' >>"$newer/etc/pegasus/pegasus.env"
guest mkdir /root/newer
dpkg-deb --build --root-owner-group -Znone "$newer" "$machine/root/newer/pegasus-server_999.deb" >/dev/null
before=$(pids)
said 'apt-get install ./pegasus-server_*.deb'
# What dpkg does when the operator answers with the default.
guest bash -c 'cd /root/newer && apt-get install --yes -o Dpkg::Options::=--force-confold ./pegasus-server_*.deb' >"$TMPDIR/apt" 2>&1
[[ $(pids) == "$before" ]] || die "the upgrade restarts servers"
guest grep -q "META_SERVER_LIST=$ADDRESS" /etc/pegasus/pegasus.env || die "the upgrade replaces the configuration"
guest grep -q 'max_replica_count = 1' /etc/pegasus/config.ini || die "the upgrade replaces the configuration"
for file in pegasus.env config.ini; do guest grep -q 'Something new' /etc/pegasus/$file.dpkg-dist; done
[[ $(of pegasus-replica NeedDaemonReload) == no ]] || die "systemd has the old units"
serving
guest_doc 'pegasus_shell --meta meta1:34601 rolling_restart --role meta' meta1=$ADDRESS | shows '1 of 1 meta-servers restarted'
guest_doc 'pegasus_shell --meta meta1:34601 rolling_restart --role collector COLLECTOR:34101' meta1=$ADDRESS \
  COLLECTOR=$ADDRESS | shows '1 of 1 collectors restarted'
guest_doc 'systemctl restart pegasus-replica'
[[ -z $(grep -Fx "$before" <(pids)) ]] || die "some process is still the old one"
serving
reads

chapter "" "The package goes, comes back, and is purged"
guest apt-get remove --yes pegasus-server >"$TMPDIR/apt" 2>&1
[[ -z $(guest pgrep pegasus_server) ]] || die "servers outlive their package"
[[ -z $(guest bash -c 'ls /etc/systemd/system/*.wants | grep pegasus') ]] || die "units are still wanted"
guest test -s /etc/pegasus/config.ini -a -s /etc/pegasus/pegasus.env
guest bash -c 'apt-get install --yes /root/newer/pegasus-server_*.deb' >"$TMPDIR/apt" 2>&1
guest systemctl enable --now "${UNITS[@]}"
serving
reads
guest apt-get purge --yes pegasus-server >"$TMPDIR/apt" 2>&1
shows 'the data in /var/lib/pegasus stays' <"$TMPDIR/apt"
[[ -z $(guest pgrep pegasus_server) ]] || die "servers outlive their package"
guest test -d /var/lib/pegasus/meta -a -d /data/ssd1 -a ! -e /etc/pegasus/config.ini
[[ $(guest systemctl list-units --all --plain --no-legend 'pegasus*') == '' ]] || die "units are left behind"
chapter "" "The check is over"
