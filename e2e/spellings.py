#!/usr/bin/env python3
"""Asks for paths in odd spellings, and compares how they are understood.

    spellings.py --full HOST:PORT --one HOST:PORT --main SOCKET --user NAME --password-file FILE

The same requests go, byte for byte, to the router of a stack of many processes, to the router of a stack without workers, and past
that router to the main process's own socket. Status and error code must be the same: routing must not change what a path means.

Two things differ on purpose. Where Synapse has nothing at all, it answers 404 in HTML, the router 404 M_UNRECOGNIZED. And an absolute
URL as the target, which every HTTP server has to take, is nothing that Synapse knows; the router forwards the path in it.
"""

import argparse
import http.client
import json
import pathlib
import re
import socket
import sys
from urllib.parse import quote

from endpoints import Server, log_in

SECONDS = 60

# One request of each kind of endpoint: each is another role's, and the answer depends on the whole path.
BASES = [
    ("GET", "/_matrix/client/versions"),
    ("GET", "/_matrix/client/v3/account/whoami"),
    ("GET", "/_matrix/client/v3/sync?timeout=0"),
    ("GET", "/_matrix/client/v3/rooms/{room}/state/m.room.create"),
    ("GET", "/_matrix/client/v3/rooms/{room}/joined_members"),
    ("GET", "/_matrix/client/v3/rooms/{room}/event/{event}"),
    ("PUT", "/_matrix/client/v3/rooms/{room}/send/org.example.odd/once"),
    ("PUT", "/_matrix/client/v3/rooms/{room}/typing/{user}"),
    ("POST", "/_matrix/client/v3/rooms/{room}/receipt/m.read/{event}"),
    ("GET", "/_matrix/client/v3/profile/{user}/displayname"),
    ("GET", "/_matrix/client/v3/user/{user}/account_data/org.example.none"),
    ("PUT", "/_matrix/client/v3/user/{user}/rooms/{room}/tags/u.odd"),
    ("GET", "/_matrix/client/v3/pushrules/global/override/.m.rule.master"),
    ("PUT", "/_matrix/client/v3/sendToDevice/org.example.odd/once"),
    ("GET", "/_matrix/client/v3/presence/{user}/status"),
    ("GET", "/_matrix/client/v3/directory/room/%23nowhere%3A{name}"),
    ("GET", "/_matrix/client/v1/media/download/{name}/nothing"),
    ("GET", "/_matrix/client/v3/devices/NONE"),
    ("GET", "/_matrix/federation/v1/version"),
    ("GET", "/_matrix/federation/v1/event/{event}"),
    ("GET", "/_matrix/key/v2/server/ed25519%3Anone"),
    ("GET", "/_synapse/admin/v1/rooms/{room}"),
    ("GET", "/_synapse/admin/v1/server_version"),
]


ABSOLUTE = "in absolute form"
NOTHING = (404, "M_UNRECOGNIZED")


def escape(character):
    return f"%{ord(character):02X}"


def spellings(path):
    """The odd spellings of one path (with its query), each with a name."""
    path, mark, query = path.partition("?")
    query = mark + query
    segments = path.split("/")
    last = len(segments) - 1

    def with_segment(index, text):
        return "/".join([*segments[:index], text, *segments[index + 1 :]]) + query

    yield "as it is", path + query
    yield "with a slash at the end", path + "/" + query
    yield "with two slashes at the end", path + "//" + query
    yield "with two slashes at the beginning", "/" + path + query
    yield "in capitals", path.upper() + query
    yield "with small escapes", re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), path) + query
    yield "with nothing escaped", path.replace("%21", "!").replace("%3A", ":").replace("%40", "@") + query
    yield "with doubly escaped percent signs", path.replace("%", "%25") + query
    yield "with parameters", path + ";a=b" + query
    yield "with an empty query", path + "?" + query.removeprefix("?")
    yield "with a second question mark", path + (query or "?") + "?x"
    yield "with an escaped question mark", path + "%3F" + query.removeprefix("?")
    yield "with a dot segment at the end", path + "/." + query
    yield "with a parent segment at the end", path + "/.." + query
    yield "with a parent segment and back", f"{path}/../{segments[last]}{query}"
    yield "from the root with a parent segment", f"/x/..{path}{query}"
    yield "with the root's parent", f"/..{path}{query}"
    yield ABSOLUTE, f"http://localhost{path}{query}"
    for index in range(1, last + 1):
        segment = segments[index]
        # The first letter that an escape does not hold already.
        bare = re.search(r"(?<!%)(?<!%[0-9A-F])[A-Za-z_]", segment)
        place = f"segment {index}"
        if bare:
            at = bare.start()
            character = segment[at]
            yield f"{place} with an escaped letter", with_segment(
                index, segment[:at] + escape(character) + segment[at + 1 :]
            )
            yield f"{place} with a letter in the other case", with_segment(
                index, segment[:at] + character.swapcase() + segment[at + 1 :]
            )
        yield f"{place} wholly escaped", with_segment(
            index, "".join(c if c in "%0123456789ABCDEF" and "%" in segment else escape(c) for c in segment)
        )
        yield f"{place} after two slashes", with_segment(index, "/" + segment)
        yield f"{place} with an escaped slash before", with_segment(index, "%2F" + segment)
        yield f"{place} with an escaped slash after", with_segment(index, segment + "%2f")
        yield f"{place} joined to the next by an escaped slash", "/".join(segments[: index + 1]) + "%2F" + "/".join(
            segments[index + 1 :]
        ) + query
        yield f"{place} after a dot segment", with_segment(index, "./" + segment)
        yield f"{place} after an escaped parent segment", with_segment(index, f"{segment}/%2e%2E/{segment}")
        yield f"{place} with parameters", with_segment(index, segment + ";a=b")
        yield f"{place} with a byte that is no UTF-8", with_segment(index, segment + "%FF")
        yield f"{place} with an overlong slash", with_segment(index, segment + "%C0%AF")
        yield f"{place} with a NUL", with_segment(index, segment + "%00")
        yield f"{place} with a lone percent sign", with_segment(index, segment + "%")
        yield f"{place} with half an escape", with_segment(index, segment + "%4")
        yield f"{place} with no hexadecimal escape", with_segment(index, segment + "%zz")
        yield f"{place} with an escaped space", with_segment(index, segment + "%20")
        yield f"{place} with a plus", with_segment(index, "+" + segment)
        yield f"{place} with an escaped line break", with_segment(index, segment + "%0D%0Ax")
        yield f"{place} in UTF-8", with_segment(index, segment + "%C3%A9")
        yield f"{place} with a backslash", with_segment(index, segment + "\\")
        yield f"{place} empty", with_segment(index, "")
        yield f"{place} left out", "/".join(segments[:index] + segments[index + 1 :]) + query


class Direct(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self.host)


class Raw:
    """One connection, which asks for targets exactly as they are written."""

    def __init__(self, connect, token):
        self.connection = connect()
        self.token = token

    def ask(self, method, target):
        body = b"{}" if method in ("PUT", "POST") else b""
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        if self.connection.sock is None:
            self.connection.connect()
        self.connection.sock.sendall(head.encode() + body)
        response = http.client.HTTPResponse(self.connection.sock, method=method)
        response.begin()
        text = response.read()
        if response.will_close:
            self.connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        return response.status, answer.get("errcode") if isinstance(answer, dict) else None


class Place:
    """One stack, with what the paths are filled with there."""

    def __init__(self, address, user, password):
        server = Server(f"http://{address}")
        me = log_in(server, user, password)
        self.address, self.token = address, me["access_token"]
        room = server.need("POST", "/_matrix/client/v3/createRoom", self.token, {"room_version": "11"})["room_id"]
        path = f"/_matrix/client/v3/rooms/{quote(room, safe='')}/send/org.example.odd/first"
        event = server.need("PUT", path, self.token)["event_id"]
        self.values = {
            "room": quote(room, safe=""),
            "event": quote(event, safe=""),
            "user": quote(me["user_id"], safe=""),
            "name": quote(me["user_id"].partition(":")[2], safe=""),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--full", "--one", "--main", "--user", "--password-file"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    password = pathlib.Path(arguments.password_file).read_text().strip()
    full, one = (Place(address, arguments.user, password) for address in (arguments.full, arguments.one))
    ways = [
        (full, Raw(lambda: http.client.HTTPConnection(full.address, timeout=SECONDS), full.token)),
        (one, Raw(lambda: http.client.HTTPConnection(one.address, timeout=SECONDS), one.token)),
        (one, Raw(lambda: Direct(arguments.main), one.token)),
    ]
    asked, failures = 0, []
    for method, base in BASES:
        variants = [list(spellings(base.format(**place.values))) for place, _ in ways]
        for spelt in zip(*variants, strict=True):
            name = spelt[0][0]
            answers = [raw.ask(method, target) for (_, raw), (_, target) in zip(ways, spelt, strict=True)]
            if answers[2] == (404, None) and (name == ABSOLUTE or answers[1] == NOTHING):
                answers[2] = answers[1]
            asked += 1
            if len(set(answers)) > 1:
                failures.append(f"{method} {spelt[0][1]} ({name}): {answers}")
    print("\n".join(failures))
    print(f"{asked} spellings asked for in three ways, {len(failures)} understood differently")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
