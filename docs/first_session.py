"""A first session with the Python client that existed before this server, unchanged from PyPI:

    python3 -m venv target/python
    target/python/bin/pip install -q pypegasus3
    target/python/bin/python docs/first_session.py 127.0.0.1:34601
"""

import sys
import warnings

warnings.filterwarnings("ignore")  # Twisted would like a TLS helper; nothing here uses TLS

from pypegasus.pgclient import Pegasus
from pypegasus.utils.tools import ScanOptions
from twisted.internet import defer, task


@defer.inlineCallbacks
def session(_reactor, metas):
    client = Pegasus(metas.split(","), "temp")
    if not (yield client.init()):
        raise SystemExit(f"no answer from {metas}: is the cluster up?")

    # Keys and values are text (sent as UTF-8) or bytes; some operations of this client want text.
    # Operations answer (error code, result); the code 0 is "done", 23 "not found".
    yield client.set("user:1", "name", "Ada")
    print("get       ", (yield client.get("user:1", "name")))

    # Several values of one hash key, all or none.
    yield client.multi_set("user:1", {"mail": "ada@example.org", "town": "London"})
    print("multi_get ", (yield client.multi_get("user:1", {"mail", "town"})))

    yield client.set("user:1", "session", "abc", ttl=60)
    print("ttl       ", (yield client.ttl("user:1", "session")))

    scanner = client.get_scanner("user:1", "a", "z", ScanOptions())
    while row := (yield scanner.get_next()):
        print("scan      ", row)
    scanner.close()

    yield client.multi_del("user:1", {"name", "mail", "town", "session"})
    print("after del ", (yield client.get("user:1", "name")))
    client.close()


task.react(session, sys.argv[1:] or ["127.0.0.1:34601"])
