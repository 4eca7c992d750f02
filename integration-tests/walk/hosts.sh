# The machines of the walk.

LIBRARIES=/usr/share/java
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

# Names of namespaces, and of hosts, are this script's own.
mkdir -p /run/netns
mount -t tmpfs walk /run/netns
echo '127.0.0.1 localhost' >"$work/names"
mount --bind "$work/names" /etc/hosts
ip link set lo up
ip link add lan type bridge
ip address add 10.77.0.254/24 dev lan
ip link set lan up

# NAME ADDRESS OTHER_NAMES..
host() {
  local name=$1 address=$2
  mkdir "$work/$name"
  ip netns add "$name"
  ip link add "to-$name" type veth peer name eth0 netns "$name"
  ip link set "to-$name" master lan up
  ip -n "$name" address add "$address/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
  echo "$address $name ${*:3}" >>"$work/names"
}

# In the network of a host, with its disk at /mnt, in the directory of its package.
enter() {
  where=(nsenter "--net=/run/netns/$1" unshare --mount bash -ec
    'mount --bind "$0" /mnt; cd /mnt; [[ ! -d $(echo pegasus-server-*/) ]] || cd pegasus-server-*/; exec "$@"' "$work/$1")
}

# HOST COMMAND.., where `doc LINE` is a command as well.
on() {
  local where host=$1
  shift
  enter "$host"
  if [[ $1 == doc ]]; then
    said "$2"
    set -- bash -ec "$(filled "${@:2}")"
  fi
  "${where[@]}" "$@"
}

# HOST LINE: runs a line of the guide that starts a role, and again whenever it ends, as systemd would.
keep() {
  local where host=$1 role=${2##* }
  said "$2"
  enter "$host"
  touch "$work/$host/$role.enabled"
  while [[ -e $work/$host/$role.enabled ]]; do
    # shellcheck disable=SC2086 # words of the guide
    "${where[@]}" $2 >>"$work/$host/$role.out" 2>&1 &
    echo $! >"$work/$host/$role.pid"
    wait $! || true
    sleep 0.2
  done &
}

# HOST ROLE: as `systemctl disable --now`.
stop() {
  local pid
  pid=$(cat "$work/$1/$2.pid")
  rm "$work/$1/$2.enabled" "$work/$1/$2.pid"
  kill -TERM "$pid"
  patiently eval "! kill -0 $pid"
}

# HOST: a ZooKeeper as small as its own guide has it.
zookeeper() {
  local where
  mkdir "$work/$1/zookeeper"
  printf 'tickTime=2000\ndataDir=/mnt/zookeeper\nclientPort=2181\nadmin.enableServer=false\n' >"$work/$1/zookeeper.cfg"
  enter "$1"
  "${where[@]}" java -cp "$LIBRARIES/zookeeper.jar:$LIBRARIES/slf4j-simple.jar" \
    org.apache.zookeeper.server.quorum.QuorumPeerMain /mnt/zookeeper.cfg >"$work/zookeeper.out" 2>&1 &
}

# ADDRESSES of hosts: Prometheus with the package's files, their addresses in place of the examples.
prometheus_with() {
  local servers="" address
  for address in "$@"; do servers+="'$address:34601', '$address:34801', "; done
  cp -r "$work"/host1/pegasus-server-*/prometheus "$work/prometheus"
  sed -i "$work/prometheus/prometheus.yml" -e 's/_interval: 10s/_interval: 1s/' \
    -e "s/\[127.0.0.1:34101\]/['collector1:34101']/" -e '/^ *- 127\.0\.0\.1:/d' -e "s/- targets:\$/- targets: [${servers%, }]/"
  promtool check config "$work/prometheus/prometheus.yml" >/dev/null || die "promtool: $(cat "$work/prometheus/prometheus.yml")"
  prometheus --config.file="$work/prometheus/prometheus.yml" --web.listen-address=127.0.0.1:9090 \
    --storage.tsdb.path="$work/prometheus/data" >"$work/prometheus.out" 2>&1 &
}

# QUERY VALUE: what Prometheus answers.
sees() {
  local answer
  answer=$(curl -sSG http://127.0.0.1:9090/api/v1/query --data-urlencode "query=$1")
  [[ $answer == *",\"$2\"]}]"* ]] || { echo "$1 is not $2: $answer"; return 1; }
}
