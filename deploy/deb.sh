#!/bin/bash
# Makes a Debian package, pegasus-server or pegasus-tools, of programs that are built already. What is in it stands in
# [package.metadata.deb] of crates/server and crates/shell. The same programs give the same bytes.
#
#   deploy/deb.sh server|tools [--profile release|dev] [--out target/pack] [--fast]
#
# --fast compresses less. SOURCE_DATE_EPOCH dates what is in it, else the last commit. Prints the package's path.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "deb: $*" >&2; exit 1; }

case ${1:-} in
  server) crate=pegasus-server contents=(pegasus_server) ;;
  tools) crate=pegasus-shell contents=(pegasus_shell pegasus_bench pegasus_onebox) ;;
  *) die "expected server or tools, not '${1:-}'" ;;
esac
shift
profile=release out=target/pack fast=()
while (($#)); do
  case $1 in
    --profile) profile=${2:?profile}; shift ;;
    --out) out=${2:?directory}; shift ;;
    --fast) fast=(--fast) ;;
    *) die "unknown argument $1" ;;
  esac
  shift
done
for tool in cargo-deb strip; do
  command -v $tool >/dev/null || die "missing: $tool (.ci/tools pack deb)"
done
# cargo has another name for the directory of this profile.
programs=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}
for program in "${contents[@]}"; do
  [[ -x $programs/$program ]] || die "$programs/$program is not there: make build"
done

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
mkdir -p "$out"
cargo deb --quiet --no-build --locked "${fast[@]}" --profile "$profile" -p "$crate" --output "$(realpath "$out")/"
