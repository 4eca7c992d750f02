"""Drives every operation that pypegasus3 has against a running cluster.

Usage: drive_pypegasus3.py HOST:PORT[,HOST:PORT..]   prints a line per operation, "all passed" at the end.
"""

import os
import sys
import traceback

from twisted.internet import defer, reactor
from twisted.internet.defer import inlineCallbacks

from pypegasus.base.ttypes import error_types
from pypegasus.pgclient import Pegasus
from pypegasus.rrdb.ttypes import filter_type
from pypegasus.utils.tools import MultiGetOptions, ScanOptions

OK = error_types.ERR_OK.value
NOT_FOUND = error_types.ERR_OBJECT_NOT_FOUND.value
INCOMPLETE = error_types.ERR_INCOMPLETE_DATA.value

# Keys of one run do not meet those of another.
RUN = os.urandom(4).hex()

STEPS = []


def step(function):
    STEPS.append(inlineCallbacks(function))
    return function


def expect(got, wanted, what=""):
    if got != wanted:
        raise AssertionError("%s: got %r, expected %r" % (what or "result", got, wanted))


def later(seconds):
    d = defer.Deferred()
    reactor.callLater(seconds, d.callback, None)
    return d


def name(text):
    return "%s-%s" % (RUN, text)


@step
def set_get(c):
    code, _ = yield c.get(name("a"), "s")
    expect(code, NOT_FOUND)
    code, _ = yield c.set(name("a"), "s", "value")
    expect(code, OK)
    expect((yield c.get(name("a"), "s")), (OK, b"value"))
    code, _ = yield c.set(name("a"), "s", "another")
    expect(code, OK)
    expect((yield c.get(name("a"), "s")), (OK, b"another"))


@step
def set_get_empty_sort_key_and_value(c):
    code, _ = yield c.set(name("empty"), "", "")
    expect(code, OK)
    expect((yield c.get(name("empty"), "")), (OK, b""))


@step
def set_get_binary(c):
    for n in range(20):
        hash_key, sort_key, value = b"\x00" + os.urandom(9) + b"\xff", os.urandom(n), os.urandom(n * 50)
        code, _ = yield c.set(hash_key, sort_key, value)
        expect(code, OK)
        expect((yield c.get(hash_key, sort_key)), (OK, value))
        # The client's scanner wants keys that are text.
        code, _ = yield c.remove(hash_key, sort_key)
        expect(code, OK)


@step
def large_values(c):
    value = b"x" * 1000000
    code, _ = yield c.set(name("large"), "s", value)
    expect(code, OK)
    expect((yield c.get(name("large"), "s")), (OK, value))


@step
def all_partitions(c):
    for n in range(100):
        code, _ = yield c.set(name("spread %d" % n), "s", str(n))
        expect(code, OK)
    for n in range(100):
        expect((yield c.get(name("spread %d" % n), "s")), (OK, str(n).encode()))


@step
def exist_remove(c):
    code, _ = yield c.set(name("r"), "s", "value")
    expect(code, OK)
    code, _ = yield c.exist(name("r"), "s")
    expect(code, OK)
    code, _ = yield c.remove(name("r"), "s")
    expect(code, OK)
    code, _ = yield c.exist(name("r"), "s")
    expect(code, NOT_FOUND)
    code, _ = yield c.get(name("r"), "s")
    expect(code, NOT_FOUND)
    code, _ = yield c.remove(name("r"), "s")
    expect(code, OK, "remove of what is not there")


@step
def ttl(c):
    code, _ = yield c.set(name("ttl"), "for ever", "v")
    expect(code, OK)
    expect((yield c.ttl(name("ttl"), "for ever")), (OK, -1))
    code, _ = yield c.set(name("ttl"), "minute", "v", 60)
    expect(code, OK)
    code, left = yield c.ttl(name("ttl"), "minute")
    expect((code, 55 <= left <= 60), (OK, True), "ttl %r" % left)
    code, _ = yield c.set(name("ttl"), "second", "v", 1)
    expect(code, OK)
    yield later(2.1)
    code, _ = yield c.ttl(name("ttl"), "second")
    expect(code, NOT_FOUND)
    code, _ = yield c.get(name("ttl"), "second")
    expect(code, NOT_FOUND)


def rows(n):
    return {"k%03d" % i: "v%d" % i for i in range(n)}


def text(values):
    return {k.decode(): v.decode() for k, v in values.items()}


@step
def multi_set_get_count(c):
    code, _ = yield c.multi_set(name("m"), rows(50))
    expect(code, OK)
    expect((yield c.sort_key_count(name("m"))), (OK, 50))
    code, got = yield c.multi_get(name("m"), set(rows(50)))
    expect((code, text(got)), (OK, rows(50)))
    code, got = yield c.multi_get(name("m"), {"k001", "k049", "absent"})
    expect((code, text(got)), (OK, {"k001": "v1", "k049": "v49"}))
    code, got = yield c.multi_get(name("m"), None)
    expect((code, text(got)), (OK, rows(50)), "all sort keys")
    code, got = yield c.multi_get(name("m"), None, max_kv_count=7)
    expect((code, text(got)), (INCOMPLETE, rows(7)), "the first seven")
    code, got = yield c.multi_get(name("nothing"), None)
    expect((code, got), (OK, {}))


@step
def get_sort_keys(c):
    code, got = yield c.get_sort_keys(name("m"))
    expect((code, text(got)), (OK, {k: "" for k in rows(50)}))


@step
def multi_set_ttl(c):
    code, _ = yield c.multi_set(name("mt"), rows(3), 60)
    expect(code, OK)
    code, left = yield c.ttl(name("mt"), "k001")
    expect((code, 55 <= left <= 60), (OK, True), "ttl %r" % left)


@step
def multi_get_range(c):
    for start_inclusive, stop_inclusive, wanted in (
        (True, False, ["k010", "k011", "k012"]),
        (False, False, ["k011", "k012"]),
        (True, True, ["k010", "k011", "k012", "k013"]),
        (False, True, ["k011", "k012", "k013"]),
    ):
        options = MultiGetOptions()
        options.start_inclusive, options.stop_inclusive = start_inclusive, stop_inclusive
        code, got = yield c.multi_get_opt(name("m"), "k010", "k013", options)
        expect((code, sorted(text(got))), (OK, wanted))
    code, got = yield c.multi_get_opt(name("m"), "", "", MultiGetOptions())
    expect((code, text(got)), (OK, rows(50)), "no limits")
    options = MultiGetOptions()
    options.no_value = True
    code, got = yield c.multi_get_opt(name("m"), "k048", "", options)
    expect((code, text(got)), (OK, {"k048": "", "k049": ""}))


@step
def multi_get_reverse(c):
    options = MultiGetOptions()
    options.reverse = True
    code, got = yield c.multi_get_opt(name("m"), "", "", options, max_kv_count=3)
    expect((code, sorted(text(got))), (INCOMPLETE, ["k047", "k048", "k049"]), "the last three")


@step
def multi_get_filters(c):
    data = {"apple pie": "1", "pie": "2", "pie apple": "3", "none": "4"}
    code, _ = yield c.multi_set(name("f"), data)
    expect(code, OK)
    for kind, wanted in (
        (filter_type.FT_MATCH_PREFIX, ["pie", "pie apple"]),
        (filter_type.FT_MATCH_POSTFIX, ["apple pie", "pie"]),
        (filter_type.FT_MATCH_ANYWHERE, ["apple pie", "pie", "pie apple"]),
        (filter_type.FT_NO_FILTER, sorted(data)),
    ):
        options = MultiGetOptions()
        options.sortkey_filter_type, options.sortkey_filter_pattern = kind, "pie"
        code, got = yield c.multi_get_opt(name("f"), "", "", options)
        expect((code, sorted(text(got))), (OK, wanted), "filter %r" % kind)


@step
def multi_del(c):
    code, _ = yield c.multi_set(name("d"), rows(10))
    expect(code, OK)
    expect((yield c.multi_del(name("d"), {"k000", "k001", "absent"})), (OK, 3), "counts what was asked for")
    expect((yield c.sort_key_count(name("d"))), (OK, 8))


def scanned(scanner):
    """All that a scanner gives, as {(hash key, sort key): value}."""

    @inlineCallbacks
    def run():
        found = {}
        while True:
            row = yield scanner.get_next()
            if row is None:
                break
            found[row[0]] = row[1].decode()
        scanner.close()
        return found

    return run()


@step
def scan_of_a_hash_key(c):
    for start_inclusive, stop_inclusive, wanted in (
        (True, False, ["k010", "k011", "k012"]),
        (True, True, ["k010", "k011", "k012", "k013"]),
        (False, True, ["k011", "k012", "k013"]),
    ):
        # A batch size below the number of rows: several pages.
        options = ScanOptions()
        options.batch_size = 2
        options.start_inclusive, options.stop_inclusive = start_inclusive, stop_inclusive
        found = yield scanned(c.get_scanner(name("m"), "k010", "k013", options))
        expect(sorted(sort for _, sort in found), wanted)
        expect(set(found.values()), {"v" + str(int(k[1:])) for k in wanted})


@step
def scan_closed_in_the_middle(c):
    options = ScanOptions()
    options.batch_size = 5
    scanner = c.get_scanner(name("m"), "k000", "k049", options)
    for _ in range(7):
        row = yield scanner.get_next()
        expect(row is None, False)
    scanner.close()
    # The server has taken it well.
    expect((yield c.sort_key_count(name("m"))), (OK, 50))


@step
def unordered_scan_of_the_table(c):
    for split in (1, 3, 100):
        options = ScanOptions()
        options.batch_size = 13
        found = {}
        scanners = c.get_unordered_scanners(split, options)
        for scanner in scanners:
            part = yield scanned(scanner)
            expect(set(part) & set(found), set(), "no row twice")
            found.update(part)
        mine = {sort: value for (hash_key, sort), value in found.items() if hash_key == name("m")}
        expect(mine, rows(50), "split %d" % split)
        spread = [h for h, _ in found if h.startswith(name("spread"))]
        expect(len(spread), 100)


@step
def many_at_once(c):
    answers = yield defer.gatherResults([c.set(name("p%d" % i), "s", str(i)) for i in range(300)])
    expect({code for code, _ in answers}, {OK})
    answers = yield defer.gatherResults([c.get(name("p%d" % i), "s") for i in range(300)])
    expect(answers, [(OK, str(i).encode()) for i in range(300)])


@inlineCallbacks
def main(metas, outcome):
    try:
        client = Pegasus(metas, "temp")
        ready = yield client.init()
        expect(bool(ready), True, "init")
        for run in STEPS:
            yield run(client)
            print("%s: passed" % run.__name__)
        client.close()

        # A table that is not there is told, not hung on.
        client = Pegasus(metas, "no such table")
        ready = yield client.init()
        expect(bool(ready), False, "init of a table that does not exist")
        client.close()
        print("all passed")
        outcome.append(True)
    except Exception:
        traceback.print_exc()
    finally:
        reactor.stop()


if __name__ == "__main__":
    done = []
    reactor.callWhenRunning(main, sys.argv[1].split(","), done)
    reactor.callLater(120, reactor.stop)
    reactor.run()
    sys.exit(0 if done else 1)
