"""Callers that write and read all the time, and try again after 3 s what did not succeed.

Usage: callers_pypegasus3.py HOST:PORT[,HOST:PORT..] TRIES   TRIES = how often, at most. Prints "ready", works until its
input ends, then tells how it was.

The client looks where the partitions are every 2 s, if an answer has shown that it does not know: whoever waits for that
must not notice that servers are restarted. As it looks it closes its connections; what is in flight there times out after
2 s, and counts as a first try, too.
"""

import collections
import logging
import sys
import time
import traceback

from twisted.internet import defer, reactor, stdio
from twisted.internet.defer import inlineCallbacks
from twisted.internet.protocol import Protocol

from pypegasus.base.ttypes import error_types
from pypegasus.pgclient import Pegasus

CALLERS = 4
AGAIN_AFTER_S = 3
PAUSE_S = 0.01

OK = error_types.ERR_OK.value


def later(seconds):
    d = defer.Deferred()
    reactor.callLater(seconds, d.callback, None)
    return d


def now():
    """As in the logs of the servers and of the client."""
    t = time.time()
    return time.strftime("%H:%M:%S", time.gmtime(t)) + ".%03d" % (t % 1 * 1000)


class Seen:
    def __init__(self, tries):
        self.tries = tries
        self.operations = 0
        # By how many more tries they needed.
        self.again = collections.Counter()
        # What came instead of what was wanted.
        self.answers = collections.Counter()
        # Operations that did not succeed at once: what came, and when.
        self.incidents = []
        self.failed = 0
        self.longest_s = 0


class Input(Protocol):
    ended = False

    def connectionLost(self, reason):
        Input.ended = True


@inlineCallbacks
def attempt(call, wanted):
    """None when it went well, else what came instead."""
    try:
        answer = yield call()
    except Exception as error:
        return repr(error)
    good = isinstance(answer, tuple) and answer[0] == OK and wanted in (None, answer[1])
    return None if good else repr(answer)


@inlineCallbacks
def operate(seen, what, call, wanted=None):
    begun = time.monotonic()
    wrong = []
    while len(wrong) <= seen.tries:
        asked = now()
        answer = yield attempt(call, wanted)
        if answer is None:
            break
        seen.answers[answer] += 1
        wrong.append("%s-%s %s" % (asked, now(), answer))
        if len(wrong) <= seen.tries:
            yield later(AGAIN_AFTER_S)
    if wrong:
        end = "well" if len(wrong) <= seen.tries else "FAILED"
        seen.incidents.append("%s: %s, then %s" % (what, ", ".join(wrong), end))
    if len(wrong) > seen.tries:
        seen.failed += 1
    elif wrong:
        seen.again[len(wrong)] += 1
    seen.operations += 1
    seen.longest_s = max(seen.longest_s, time.monotonic() - begun)


@inlineCallbacks
def caller(client, seen, index):
    n = 0
    while not Input.ended:
        n += 1
        # Another partition each time.
        key, value = "caller %d, %d" % (index, n % 50), "value %d" % n
        yield operate(seen, "set " + key, lambda: client.set(key, "s", value))
        yield operate(seen, "get " + key, lambda: client.get(key, "s"), value.encode())
        yield later(PAUSE_S)


@inlineCallbacks
def main(metas, tries, outcome):
    try:
        client = Pegasus(metas, "temp")
        if not (yield client.init()):
            raise AssertionError("init")
        stdio.StandardIO(Input())
        print("ready", flush=True)
        seen = Seen(tries)
        yield defer.gatherResults([caller(client, seen, index) for index in range(CALLERS)])
        if seen.failed:
            print("\n".join(seen.incidents[-200:]))
        print(
            "%d operations, %d failed, more tries needed: %s, answers %s, the longest took %.1f s"
            % (seen.operations, seen.failed, dict(seen.again), dict(seen.answers), seen.longest_s)
        )
        if not seen.failed and seen.operations > 0:
            outcome.append(True)
    except Exception:
        traceback.print_exc()
    finally:
        reactor.stop()


if __name__ == "__main__":
    for handler in logging.getLogger().handlers:
        # With milliseconds, which the client's own format lacks.
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    done = []
    reactor.callWhenRunning(main, sys.argv[1].split(","), int(sys.argv[2]), done)
    reactor.run()
    sys.exit(0 if done else 1)
