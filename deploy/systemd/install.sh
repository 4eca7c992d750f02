#!/bin/bash
# Puts programs, service units and a first configuration in their places, or takes programs and units away again.
#
#   install.sh install|uninstall [--programs DIR] [--config FILE]
#
# PREFIX (/usr/local) is where programs and units go; with DESTDIR everything goes below it, for packages, and nothing
# is told to the running systemd. A configuration that is there stays, and so does data: uninstall says where.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() { echo "install: $*" >&2; exit 1; }

action=${1:-}
[[ $action == install || $action == uninstall ]] || die "expected install or uninstall, not '$action'"
shift
# As in a package.
programs=$here/../bin config=$here/../config.ini
while (($#)); do
  case $1 in
    --programs) programs=${2:?directory} ;;
    --config) config=${2:?file} ;;
    *) die "unknown argument $1" ;;
  esac
  shift 2
done

prefix=${PREFIX:-/usr/local} root=${DESTDIR:-}
bin=$prefix/bin
units=$prefix/lib/systemd/system
users=$prefix/lib/sysusers.d
names=(pegasus-meta.service pegasus-replica.service pegasus-collector.service)
[[ -n $root || $(id -u) == 0 ]] || die "needs root, or DESTDIR"

live() { [[ -z $root && -d /run/systemd/system ]]; }

if [[ $action == uninstall ]]; then
  if live; then
    systemctl disable --now "${names[@]}" 2>/dev/null || true
  fi
  rm -f "${names[@]/#/$root$units/}" "$root$users/pegasus.conf" "$root$bin/pegasus_server" "$root$bin/pegasus_shell"
  if live; then
    systemctl daemon-reload
  fi
  echo "removed. What stays: $root/etc/pegasus, $root/var/lib/pegasus, data directories of your own, user pegasus."
  exit 0
fi

[[ -x $programs/pegasus_server ]] || die "$programs/pegasus_server is not there: make build"
[[ -f $config ]] || die "$config is not there"
install -D -m 755 "$programs/pegasus_server" "$root$bin/pegasus_server"
# A package of servers has no shell.
if [[ -x $programs/pegasus_shell ]]; then
  install -D -m 755 "$programs/pegasus_shell" "$root$bin/pegasus_shell"
fi
for unit in "${names[@]}"; do
  install -d "$root$units"
  sed "s#^ExecStart=/usr/bin/#ExecStart=$bin/#" "$here/$unit" >"$root$units/$unit"
  chmod 644 "$root$units/$unit"
done
install -D -m 644 "$here/sysusers.conf" "$root$users/pegasus.conf"
install -d "$root/etc/pegasus"
for pair in "$config:config.ini" "$here/pegasus.env:pegasus.env"; do
  to=$root/etc/pegasus/${pair##*:}
  if [[ -e $to ]]; then
    echo "kept $to; the new one is $to.new"
    to=$to.new
  fi
  install -m 644 "${pair%:*}" "$to"
done
if [[ -z $root ]]; then
  systemd-sysusers "$users/pegasus.conf"
fi
if live; then
  systemctl daemon-reload
fi
cat <<END
Next: fill in $root/etc/pegasus/pegasus.env, let it be checked, and start this host's roles:
  (set -a; . $root/etc/pegasus/pegasus.env; PEGASUS__VAR__APP_DIR=/tmp PEGASUS__VAR__HOME_DIR=/tmp \\
     $bin/pegasus_server $root/etc/pegasus/config.ini --check-config)
  systemctl enable --now pegasus-replica.service
END
