#!/bin/bash
# A stranger's walk: from the tarball to a cluster of three hosts with ZooKeeper, its daily life, and away again, as the
# documents in docs/ tell it.
#
#   integration-tests/walk.sh [directory of the programs: target/debug]
#
# `chapter FILE HEADING` is a heading of docs/FILE; `doc LINE` runs a line that stands there and fails when it does not,
# so that the guide and the walk stay the same. NAME=VALUE behind it fills in what the guide writes in capitals.
#
# Hosts are network namespaces with addresses of their own on one bridge; each has its own disk at /mnt. All of it lives
# in namespaces that end with this script, as do all processes. Needs root, or user namespaces.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${WALK_INSIDE:-} ]]; then
  as_root=()
  [[ $(id -u) == 0 ]] || as_root=(--user --map-root-user)
  WALK_INSIDE=1 exec unshare "${as_root[@]}" --net --mount --pid --fork --kill-child --mount-proc \
    "integration-tests/${BASH_SOURCE[0]##*/}" "$@"
fi

programs=$(realpath "${1:-target/debug}")
docs=$PWD/docs
PATIENCE=300 # seconds for one step, of a debug build on a busy machine
work=$(mktemp -d)
TABLE=stock

. integration-tests/walk/steps.sh
. integration-tests/walk/hosts.sh

trap 'goodbye $?' EXIT

chapter install.md "The package"
said 'make pack_server' 'make pack_tools'
for kind in server tools; do
  tarball=$(SOURCE_DATE_EPOCH=1700000000 deploy/pack.sh "$kind" --programs "$programs" --out "$work/pack")
done
tar xzf "$tarball" -C "$work"
PATH=$(echo "$work"/pegasus-tools-*/bin):$PATH

new_host() { # NAME ADDRESS NAMES..: a machine with nothing on it but the tarball
  host "$@"
  cp "$work"/pack/pegasus-server-*.tar.gz "$work/$1/"
  chapter install.md "The package"
  on "$1" doc 'tar xzf pegasus-server-*.tar.gz && cd pegasus-server-*/'
  on "$1" doc 'sha256sum --check --quiet SHA256SUMS'
  chapter install.md "The configuration"
  said '%{cluster.name}' '%{app.dir}' '%{data.dirs}' '%{home.dir}' '%{meta.server.list}' '%{zk.server.list}' \
    '%{slog.dir}' 'meta1:34601,meta2:34601,meta3:34601' 'coordination = embedded' 'hosts_list'
  on "$1" sed -i config.ini -e 's/%{cluster.name}/walk/g' -e 's#%{app.dir}#/mnt/app#g' -e 's#%{home.dir}#/mnt#g' \
    -e 's#%{data.dirs}#ssd1:/mnt/ssd1,ssd2:/mnt/ssd2#g' -e 's/%{slog.dir}//g' \
    -e 's/%{meta.server.list}/meta1:34601,meta2:34601,meta3:34601/g' -e 's/%{zk.server.list}/zk1:2181/g' \
    -e 's/^# hosts_list = /hosts_list = /' -e 's/^# disk_min_available_space_ratio = 10/disk_min_available_space_ratio = 1/' -e 's/^# coordination = embedded/coordination = zookeeper/'
  on "$1" doc './pegasus_server config.ini --check-config'
}
new_host host1 10.77.0.1 meta1 zk1 collector1
new_host host2 10.77.0.2 meta2
new_host host3 10.77.0.3 meta3

chapter install.md "Start, by hand"
said 'The order does not matter: who comes first waits.' 'Table `temp` is created'
for role in collector replica meta; do
  for n in 1 2 3; do
    [[ $role == collector && $n != 1 ]] || keep "host$n" "./pegasus_server config.ini -app_list $role"
  done
done
sleep 2
zookeeper host1
patiently pegasus_shell --meta meta1:34601 wait_healthy temp

chapter install.md "Look"
doc 'pegasus_shell --meta meta1:34601 nodes -d' | shows 'alive_node_count *: 3'
doc 'pegasus_shell --meta meta1:34601 ls -d' | shows 'temp'
patiently eval 'doc "curl http://COLLECTOR:34101/metrics" COLLECTOR=collector1 | shows "^table_fully_healthy.* 1$"'
for n in 1 2 3; do
  [[ -e $work/host$n/app/log/replica.log && -e $work/host$n/app/log/meta.log ]] || die "host$n: no logs in app.dir/log"
  for disk in ssd1 ssd2; do
    replicas=$(find "$work/host$n/$disk/replica/reps" -maxdepth 1 -name '*.pegasus' | wc -l)
    ((replicas >= 3 && replicas <= 5)) || die "host$n, $disk: $replicas of 8 replicas: disks are not used evenly"
  done
done
said 'prometheus/prometheus.yml' 'alerts.yml'
prometheus_with 10.77.0.{1,2,3}
patiently sees 'sum(up)' 7
patiently sees 'sum(alive_replica_servers{role="collector",cluster="walk"})' 3
patiently sees 'count(ALERTS{alertstate="firing"}) or vector(0)' 0

chapter operations.md "Tables"
said 'pegasus_shell --meta meta1:34601,meta2:34601 COMMAND'
shell() { pegasus_shell --meta meta1:34601,meta2:34601 "$@"; }
shell_doc() { said "$1"; local line; line=$(filled "$@"); eval "shell $line"; }
shell_doc 'create NAME -p 16' NAME=$TABLE 16=8
shell set $TABLE fruit apple 5 | shows OK
shell get $TABLE fruit apple | shows '"5"'
shell_doc 'set_app_envs NAME default_ttl 86400' NAME=$TABLE
shell_doc 'get_app_envs NAME' NAME=$TABLE | shows 86400

load_begins

new_host host4 10.77.0.4
chapter install.md "Start, by hand"
keep host4 './pegasus_server config.ini -app_list replica'
chapter operations.md "Add a server"
patiently eval 'shell nodes | shows "alive_node_count *: 4"'

chapter operations.md "Take a server away"
shell_doc 'drain NODE -w 3600' NODE=10.77.0.3:34801
stop host3 replica
shell_doc 'wait_healthy TABLE' TABLE=$TABLE
patiently eval 'shell nodes | shows "unalive_node_count *: 1"'
[[ $(find "$work"/host4/ssd?/replica/reps -maxdepth 1 -name '*.pegasus' | wc -l) == 16 ]] || die "host4 has not all replicas"

chapter upgrade.md "Order"
pids_before=$(cat "$work"/host?/*.pid)
doc 'pegasus_shell --meta meta1:34601 rolling_restart' | shows '3 of 3 replica-servers restarted'
doc 'pegasus_shell --meta meta1:34601 rolling_restart --role meta' | shows '3 of 3 meta-servers restarted'
doc 'pegasus_shell --meta meta1:34601 rolling_restart --role collector COLLECTOR:34101' COLLECTOR=collector1 |
  shows '1 of 1 collectors restarted'
[[ -z $(grep -Fxf <(echo "$pids_before") <(cat "$work"/host?/*.pid)) ]] || die "some process is still the old one"
load_ends
patiently sees 'sum(table_fully_healthy{role="collector"})' 2
patiently sees 'sum(unalive_replica_servers{role="collector"})' 1

chapter install.md "Take it down again"
line='./pegasus_server config.ini --remove-metadata NAME'
if told=$(on host1 doc "$line" NAME=walk 2>&1); then die "removed while all run: $told"; fi
echo "$told" | shows 'somebody listens on'
for n in 1 2 3 4; do
  for role in collector replica meta; do
    [[ ! -e $work/host$n/$role.enabled ]] || stop "host$n" $role
  done
done
# The last leader's session ends by itself.
patiently on host1 doc "$line" NAME=walk
echo "$answer" | shows 'Removed zookeeper:.*/pegasus/walk$'
echo "$answer" | shows "Its tables: .*$TABLE"
for directory in $(echo "$answer" | sed -n 's/^  //p'); do
  for n in 1 2 3 4; do on "host$n" rm -r "$directory"; done
done
if told=$(on host1 doc "$line" NAME=walk 2>&1); then die "removed twice: $told"; fi
echo "$told" | shows 'holds no cluster'
for n in 1 2 3 4; do
  left=$(cd "$work/host$n" && find . -mindepth 1 -maxdepth 1 ! -name 'pegasus-server-*' ! -name 'zookeeper*' ! -name '*.out' ! -name '*.pid')
  [[ -z $left ]] || die "host$n: left behind: $left"
done
chapter "" "The walk is over"
