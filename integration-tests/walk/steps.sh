# What the steps of the walk are made of.

begun=$SECONDS

die() {
  echo "walk: $*" >&2
  exit 1
}

# A heading of a document, or (without one) a word of our own.
chapter() {
  chapter_file=$1
  [[ -z $1 ]] || grep -qx "## $2" "$docs/$1" || die "docs/$1 has no chapter \"$2\""
  printf '%4d s  %-16s %s\n' $((SECONDS - begun)) "$1" "$2"
}

# Each of them stands in the document of this chapter.
said() {
  local text
  for text in "$@"; do
    grep -qF -- "$text" "$docs/$chapter_file" || die "docs/$chapter_file does not say: $text"
  done
}

# A line with its words in capitals filled in: LINE NAME=VALUE..
filled() {
  local line=$1 pair
  shift
  for pair in "$@"; do line=${line//${pair%%=*}/${pair#*=}}; done
  echo "$line"
}

# Runs a line of the document.
doc() {
  said "$1"
  local line
  line=$(filled "$@")
  eval "$line"
}

# What comes in has a line that matches; it is passed on to nobody.
shows() {
  local text
  text=$(cat)
  grep -qE -- "$1" <<<"$text" || die "expected \"$1\" in: $text"
}

# Tries until it works; what it said then is in `answer`.
patiently() {
  local until=$((SECONDS + PATIENCE))
  while ! answer=$("$@" 2>&1); do
    ((SECONDS < until)) || die "not within $PATIENCE s: $*: $answer"
    sleep 0.3
  done
}

# Writes and reads back all the time, one command after the other, until `load_ends`.
load_begins() {
  {
    local n=0
    while [[ ! -e $work/load.over ]]; do
      n=$((n + 1))
      echo "set load$n s value$n"
      echo "get load$n s"
    done
  } | pegasus_shell --meta meta1:34601,meta2:34601,meta3:34601 --table $TABLE >"$work/load.out" 2>"$work/load.err" &
  load=$!
}

load_ends() {
  touch "$work/load.over"
  wait $load || die "operations failed: $(head "$work/load.err")"
  [[ ! -s $work/load.err ]] || die "operations failed: $(head "$work/load.err")"
  local wrong written
  wrong=$(awk 'NR % 2 { ok = $0 == "OK" } NR % 2 == 0 { ok = $0 == "\"value" NR / 2 "\"" } !ok { print NR ": " $0; exit }' \
    "$work/load.out")
  [[ -z $wrong ]] || die "a wrong answer: $wrong"
  written=$(grep -c OK "$work/load.out")
  ((written > 100)) || die "only $written writes"
  pegasus_shell --meta meta1:34601 count_data $TABLE | shows "^$((written + 1)) rows"
  echo "        $written writes and as many reads, none failed"
}

goodbye() {
  if [[ $1 != 0 ]]; then
    echo "--- what the processes said"
    tail -n 5 "$work"/host?/*.out "$work"/*.out 2>/dev/null || true
    echo "--- warnings in logs"
    grep -hE ' (WARN|ERROR) ' "$work"/host?/app/log/*.log 2>/dev/null | tail -n 40 || true
  fi
  # Nobody writes there any more; bash would tell of each of them.
  exec 2>/dev/null
  # All in this namespace, of which this script is the first process; nowhere else.
  [[ $$ != 1 ]] || kill -9 -1 || true
  rm -rf "$work"
}
