#!/bin/bash
# Packs programs that are built already, as a directory and as a tarball of it. The same programs give the same bytes.
#
#   deploy/pack.sh server|tools [--programs target/release] [--out target/pack]
#
# The name is pegasus-{server|tools}-{version}-{commit}-{platform}-{build type}, all of them read off the programs;
# the last one that was packed stands in OUT/PACKAGE. SOURCE_DATE_EPOCH dates what is in it, else the last commit.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "pack: $*" >&2; exit 1; }

kind=${1:-}
[[ $kind == server || $kind == tools ]] || die "expected server or tools, not '$kind'"
shift
programs=target/release out=target/pack
while (($#)); do
  case $1 in
    --programs) programs=${2:?directory} ;;
    --out) out=${2:?directory} ;;
    *) die "unknown argument $1" ;;
  esac
  shift 2
done
for tool in readelf strip sha256sum tar gzip; do
  command -v $tool >/dev/null || die "missing: $tool (on Debian: apt-get install binutils coreutils tar gzip)"
done

case $kind in
  server) contents=(pegasus_server) ;;
  # The onebox starts servers that lie beside it.
  tools) contents=(pegasus_shell pegasus_bench pegasus_onebox pegasus_server) ;;
esac
for program in "${contents[@]}"; do
  [[ -x $programs/$program ]] || die "$programs/$program is not there: make build"
done

# Pegasus Server 0.1.0 (743a071) release
said=$("$programs/pegasus_server" --version)
[[ $said =~ ^Pegasus\ Server\ ([^ ]+)\ \(([^\)]+)\)\ ([a-z]+)$ ]] || die "what version is '$said'?"
version=${BASH_REMATCH[1]} commit=${BASH_REMATCH[2]//-/_} build=${BASH_REMATCH[3]}

# The highest version that any symbol wants. Newer systems have it, too: nothing else limits where it runs.
files=("${contents[@]/#/$programs/}")
glibc=$(readelf --version-info --wide "${files[@]}" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
glibc=${glibc#GLIBC_}
libraries=$(readelf --dynamic --wide "${files[@]}" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u | xargs)
platform=$(uname -m)_glibc$glibc

name=pegasus-$kind-$version-$commit-$platform-$build
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
mkdir -p "$out"
rm -rf "${out:?}/$name" "$out/$name.tar.gz"
dir=$out/$name
mkdir -p "$dir/bin"

for program in "${contents[@]}"; do
  # Names of functions stay, for backtraces.
  strip --strip-debug -o "$dir/bin/$program" "$programs/$program"
  chmod 755 "$dir/bin/$program"
done
cp LICENSE "$dir/"
cat >"$dir/VERSION" <<END
package: $name
version: $version
commit: $commit
build: $build
platform: $platform
needs: Linux $(uname -m), glibc $glibc or newer ($libraries)
END

if [[ $kind == server ]]; then
  # One program; by these names it is one role only.
  for role in meta_server replica_server collector; do
    ln -s pegasus_server "$dir/bin/pegasus_$role"
  done
  # It may be started from here or from bin/, with the configuration beside it.
  ln -s bin/pegasus_server "$dir/pegasus_server"
  cp config/config.ini "$dir/config.ini"
  ln -s ../config.ini "$dir/bin/config.ini"
  cp -r deploy/systemd "$dir/systemd"
  cp -r deploy/prometheus "$dir/prometheus"
  cp -r deploy/grafana "$dir/grafana"
  mkdir -p "$dir/docs/decisions"
  cp docs/*.md "$dir/docs/"
  cp docs/decisions/*.md "$dir/docs/decisions/"
fi

find "$dir" -type d -exec chmod 755 {} +
find "$dir" -type f ! -perm -u+x -exec chmod 644 {} +
(cd "$dir" && find . -type f ! -name SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS && chmod 644 SHA256SUMS)

tar --create --directory "$out" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner \
  --mode=u=rwX,go=rX --mtime="@$epoch" "$name" | gzip --no-name -6 >"$out/$name.tar.gz"
echo "$name" >"$out/PACKAGE"
echo "$out/$name.tar.gz"
