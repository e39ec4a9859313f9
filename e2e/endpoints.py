#!/usr/bin/env python3
"""Calls every endpoint of the routing table on a running stack, and compares what two stacks answered.

    endpoints.py probe --url URL --user NAME --password-file FILE --routes routes.json --access-log FILE --out a.json
    endpoints.py compare a.json b.json

`routes.json` is what `matrix-stack routes list --json` prints. Each endpoint is called once, with the token of an
administrator and with values that make sense where the endpoint changes nothing that a later call needs; most answer with an error
such as M_MISSING_PARAM, which only a process that serves the endpoint gives. `probe` fails where an answer is 404
M_UNRECOGNIZED, or where the router's access log says that another process answered than the table promises. `compare` fails where
two stacks answered with another status or error code: a stack of many processes must answer as one process does.
"""

import argparse
import http.client
import json
import pathlib
import sys
import time
import urllib.parse

TIMEOUT = 60

# Calls that end a session or an account: each is made by an account of its own, which the administrator adds.
ENDS_THE_SESSION = ("/logout", "/account/deactivate", "/account/password")
# Where one process answers better than many do, and Synapse itself is why.
KNOWN = {
    # Main looks first whether it knows a server to knock at; a worker asks main to knock, and main then finds none.
    ("/knock/{room_identifier}", 502, 404),
}


class Server:
    def __init__(self, url):
        self.host = urllib.parse.urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT)

    def call(self, method, target, token=None, body=None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        payload = None
        if method in ("POST", "PUT"):
            payload = json.dumps({} if body is None else body).encode()
            headers["Content-Type"] = "application/json"
        try:
            self.connection.request(method, target, payload, headers)
            response = self.connection.getresponse()
            text = response.read()
        except (http.client.HTTPException, OSError):
            self.connection.close()
            raise
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = {}
        return response.status, answer if isinstance(answer, dict) else {}

    def need(self, method, target, token=None, body=None):
        status, answer = self.call(method, target, token, body)
        if status != 200:
            sys.exit(f"{method} {target} answered {status} {answer}")
        return answer


def log_in(server, user, password):
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": password}
    return server.need("POST", "/_matrix/client/v3/login", body=body)


def sample_values(server, user, password):
    """What stands for each parameter of a template: things that exist, where asking for them changes nothing."""
    me = log_in(server, user, password)
    token = me["access_token"]
    room = server.need("POST", "/_matrix/client/v3/createRoom", token, {"preset": "private_chat"})["room_id"]
    path = f"/_matrix/client/v3/rooms/{urllib.parse.quote(room)}/send/m.room.message/first"
    event = server.need("PUT", path, token, {"msgtype": "m.text", "body": "hello"})["event_id"]
    name = me["user_id"].split(":", 1)[1]
    since = server.need("GET", "/_matrix/client/v3/sync?timeout=0", token)["next_batch"]
    return token, name, {
        "since": since, "room_id": room, "room_identifier": room, "user_id": me["user_id"], "target_user_id": me["user_id"],
        "event_id": event, "parent_id": event, "server_name": name, "server": name, "destination": name,
        "room_alias": f"#nowhere:{name}", "event_type": "m.room.topic", "account_data_type": "org.example.probe",
        "stagetype": "m.login.dummy", "receipt_type": "m.read", "relation_type": "m.annotation",
        "message_type": "org.example.probe", "field_name": "displayname", "filter_id": "0", "tag": "u.probe",
        "version": "1", "medium": "email", "address": "nobody%40example.org", "file_name": "probe.png",
        "query_type": "profile", "state_key": "",
    }


def target_of(template, values, name, number):
    """A path for a template. The admin API deletes and deactivates, so there it is asked about nobody and nowhere."""
    harmless = {**values}
    if template.startswith("/_synapse/admin"):
        harmless |= {"user_id": f"@nobody:{name}", "room_id": f"!nowhere:{name}", "room_identifier": f"!nowhere:{name}"}
    elif "/knock/" in template or "/join/" in template or template.endswith(("/leave", "/forget", "/upgrade")):
        # The room of the probes must stay joined, and what it becomes must not depend on the order.
        harmless |= {"room_id": f"!nowhere:{name}", "room_identifier": f"!nowhere:{name}"}
    segments = []
    for segment in template.split("/"):
        if segment.startswith("{"):
            key = segment.strip("{}").rstrip(".+")
            segment = urllib.parse.quote(harmless.get(key, f"probe{key}"), safe="%")
        segments.append(segment)
    query = {"probe": str(number)}
    # Incremental, or another role would have to answer; and at once.
    if template.endswith("/sync"):
        query |= {"since": values["since"], "timeout": "0"}
    elif template.endswith("/events"):
        query |= {"from": values["since"], "timeout": "0"}
    return "/".join(segments) + "?" + urllib.parse.urlencode(query)


def probe(arguments):
    server = Server(arguments.url)
    password = pathlib.Path(arguments.password_file).read_text().strip()
    routes = json.loads(pathlib.Path(arguments.routes).read_text())
    token, name, values = sample_values(server, arguments.user, password)

    def token_for(route, number):
        if not (route["template"].endswith(ENDS_THE_SESSION) or "/logout/" in route["template"]):
            return token
        guest = f"guest{number}"
        path = f"/_synapse/admin/v2/users/{urllib.parse.quote(f'@{guest}:{name}')}"
        status, answer = server.call("PUT", path, token, {"password": password})
        if status not in (200, 201):
            sys.exit(f"PUT {path} answered {status} {answer}; open the admin API with `listen.admin_api`")
        return log_in(server, guest, password)["access_token"]

    # Several variants of an endpoint make one result, but each call is a line in the log.
    results, failures, calls = {}, [], 0
    for number, route in enumerate(routes):
        target = target_of(route["template"], values, name, number)
        used = token_for(route, number)
        endpoint = f"{route['method']} {route['template']}"
        try:
            status, answer = server.call(route["method"], target, used)
        except (http.client.HTTPException, OSError) as error:
            failures.append(f"{endpoint}: no answer: {error!r}")
            continue
        calls += 1
        errcode = answer.get("errcode")
        results[endpoint] = {"status": status, "errcode": errcode, "number": number, "instances": route["instances"]}
        if errcode == "M_UNRECOGNIZED" and status in (404, 405):
            failures.append(f"{endpoint}: {status} {errcode}")
        elif any(endpoint.endswith(path) and status == worse for path, worse, _ in KNOWN):
            pass
        elif status in (429, 502, 503, 504) or (status == 500 and errcode is None):
            failures.append(f"{endpoint}: {status} {errcode}")

    # The log is written a moment after the answer.
    served, deadline = {}, time.monotonic() + 20
    while len(served) < calls and time.monotonic() < deadline:
        for line in pathlib.Path(arguments.access_log).read_text().splitlines():
            entry = json.loads(line)
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(entry["path"]).query)
            if "probe" in query:
                served[int(query["probe"][0])] = entry.get("instance")
        time.sleep(0.2)
    for endpoint, result in results.items():
        result["served_by"] = served.get(result["number"])
        if result["served_by"] not in result["instances"]:
            failures.append(f"{endpoint}: served by {result['served_by']}, promised to {result['instances']}")
    pathlib.Path(arguments.out).write_text(json.dumps(results, indent=1))
    finish(f"{len(results)} endpoints called on {len({r['served_by'] for r in results.values()})} processes", failures)


def compare(arguments):
    first, second = (json.loads(pathlib.Path(file).read_text()) for file in (arguments.first, arguments.second))
    failures = []
    for endpoint in sorted(first.keys() | second.keys()):
        answers = [(answers.get(endpoint) or {}) for answers in (first, second)]
        told = [(answer.get("status"), answer.get("errcode")) for answer in answers]
        known = any(endpoint.endswith(path) and [told[0][0], told[1][0]] == codes for path, *codes in KNOWN)
        if told[0] != told[1] and not known:
            failures.append(f"{endpoint}: {told[0]} from the one, {told[1]} from the other")
    finish(f"{len(first)} endpoints compared", failures)


def finish(summary, failures):
    print("\n".join(failures))
    print(f"{summary}, {len(failures)} failures")
    sys.exit(1 if failures else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("probe")
    for option in ("--url", "--user", "--password-file", "--routes", "--access-log", "--out"):
        one.add_argument(option, required=True)
    one.set_defaults(run=probe)
    two = commands.add_parser("compare")
    two.add_argument("first")
    two.add_argument("second")
    two.set_defaults(run=compare)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
