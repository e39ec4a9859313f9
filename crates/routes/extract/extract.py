"""Prints, as JSON, what the HTTP interface of the installed Synapse is.

Run it with the Python of an environment that has matrix-synapse in it:

    python extract.py > table.json

It builds the very resource trees that Synapse's processes serve (main process, generic worker,
media process), each under several configurations, and lists every (method, path) with the kinds of
process that register it, the configuration that it depends on, and the streams that its handler
writes. Nothing is listened on or connected to; the only files are in a temporary directory.

A table is one JSON object: `synapse` (the version), `skipped` (options whose endpoints are missing because
this environment lacks a library that they need; left out where there is none), and `endpoints`, sorted, one a
line:

method   GET, POST, PUT or DELETE
path     literal segments; `{name}` is one segment, `{name+}` one that is not empty, `{name...}` all
         that follows, slashes included
by       the processes that register it: main; main_media (main while it runs the media repository
         itself); worker (a generic worker); media (a media process)
when     which configuration registers it: option names joined by `&`, `!` for an option that is off,
         alternatives joined by `|`. Without it: always.
writes   streams of which the process that answers has to be a writer: Synapse fails elsewhere
handler  the class that answers
"""

import ast
import gc
import inspect
import json
import logging
import os
import re
import sys
import tempfile
import types
import warnings

try:
    from re import _parser as sre
except ImportError:  # Python 3.10
    import sre_parse as sre

KINDS = ("main", "main_media", "worker", "media")
SERVER_NAME = "example.org"

MAS = "matrix_authentication_service.enabled"
MAS_CONFIG = {
    "matrix_authentication_service": {"enabled": True, "endpoint": "http://localhost:1/", "secret": "s"},
    "password_config": {"enabled": False},
}
# Options outside `experimental_features` that register endpoints, each with a configuration that turns it on.
OPTIONS = {
    MAS: MAS_CONFIG,
    "cas_config.enabled": {"cas_config": {"enabled": True, "server_url": "https://cas.example.org/"}},
    "email.smtp_host": {"email": {"smtp_host": "localhost", "notif_from": "a@example.org"}},
    "federation_whitelist_endpoint_enabled": {"federation_whitelist_endpoint_enabled": True},
    "jwt_config.enabled": {"jwt_config": {"enabled": True, "secret": "s", "algorithm": "HS256"}},
    "login_via_existing_session.enabled": {"login_via_existing_session": {"enabled": True}},
    "oidc_providers": {
        "oidc_providers": [
            {
                "idp_id": "x",
                "idp_name": "x",
                "issuer": "https://op.example.org/",
                "client_id": "c",
                "client_secret": "s",
                "backchannel_logout_enabled": True,
                "user_mapping_provider": {"config": {"localpart_template": "{{ user.sub }}"}},
            }
        ]
    },
    "refreshable_access_token_lifetime": {"refreshable_access_token_lifetime": "1h"},
    "retention.enabled": {"retention": {"enabled": True}},
    "saml2_config": {"saml2_config": {"sp_config": {"metadata": {"local": []}, "xmlsec_binary": "/bin/sh"}}},
    "user_consent": {
        "user_consent": {"version": "1", "template_dir": "CONSENT", "policy_name": "x"},
    },
}
# Options that need another one.
PAIRS = [
    (MAS, "experimental_features.msc4388_mode"),
    (MAS, "experimental_features.msc4108_enabled"),
    (MAS, "experimental_features.msc4108_delegation_endpoint"),
    ("retention.enabled", "experimental_features.msc1763_enabled"),
]
EXPERIMENTAL_VALUES = {
    "msc4388_mode": "open",
    "msc4108_delegation_endpoint": "https://example.org/",
}


def base_config(directory):
    return {
        "server_name": SERVER_NAME,
        "public_baseurl": "https://example.org/",
        "report_stats": False,
        "signing_key_path": directory + "/signing.key",
        "macaroon_secret_key": "m",
        "form_secret": "f",
        "registration_shared_secret": "r",
        "worker_replication_secret": "w",
        "suppress_key_server_warning": True,
        "trusted_key_servers": [],
        "media_store_path": directory + "/media",
        "database": {"name": "sqlite3", "args": {"database": directory + "/database"}},
        "redis": {"enabled": True},
        "instance_map": {name: {"host": "localhost", "port": 1} for name in ("main", "other")},
        "stream_writers": dict.fromkeys(streams(), "other"),
        "enable_media_repo": False,
    }


def streams():
    """The streams that `stream_writers` knows."""
    import attr
    from synapse.config.workers import WriterLocations

    return list(attr.fields_dict(WriterLocations))


def parse(config):
    from synapse.config.homeserver import HomeServerConfig

    parsed = HomeServerConfig()
    parsed.parse_config_dict(config, "", "")
    return parsed


def listener(*names):
    return [{"type": "http", "port": 1, "resources": [{"names": list(names)}]}]


def build(kind, config):
    """The root resource that a process of this kind serves, and the homeserver object behind it."""
    import synapse.app._base as base
    import synapse.app.generic_worker as generic_worker
    import synapse.app.homeserver as homeserver
    from twisted.web.resource import IResource

    caught = []

    def catch(*args, **kwargs):
        caught.extend(a for a in [*args, *kwargs.values()] if IResource.providedBy(a))
        return []

    base.listen_http = homeserver.listen_http = catch
    if kind in ("main", "main_media"):
        names = ["client", "federation"] + (["consent"] if "user_consent" in config else [])
        parsed = parse({**config, "listeners": listener(*names), "enable_media_repo": kind == "main_media"})
        hs = homeserver.SynapseHomeServer(SERVER_NAME, config=parsed)
        hs.setup()
        for one in parsed.server.listeners:
            list(hs._listener_http(parsed, one))
    else:
        media = kind == "media"
        parsed = parse(
            {
                **config,
                "listeners": [],
                "worker_app": "synapse.app." + ("media_repository" if media else "generic_worker"),
                "worker_name": "worker",
                "worker_listeners": listener("media") if media else listener("client", "federation"),
                "enable_media_repo": media,
            }
        )
        hs = generic_worker.GenericWorkerServer(SERVER_NAME, config=parsed)
        hs.setup()
        for one in parsed.worker.worker_listeners:
            hs._listen_http(one)
    return caught[0], hs


# --- paths ---------------------------------------------------------------------------------------


def expand(pattern):
    """The templates that a path's regular expression stands for."""
    parsed = sre.parse(pattern)
    texts = expand_tokens(list(parsed), {index: name for name, index in parsed.state.groupdict.items()})
    if not pattern.endswith("$"):
        texts = [text + "{rest...}" for text in texts]
    return texts


def expand_tokens(tokens, names):
    texts = [""]
    for token in tokens:
        texts = [text + more for text in texts for more in expand_token(token, names)]
    return texts


def expand_token(token, names, name=None):
    operation, argument = token
    kind = str(operation)
    if kind == "LITERAL":
        return [chr(argument)]
    if kind == "ANY":  # an unescaped dot, meant as one
        return ["."]
    if kind == "AT":
        return [""]
    if kind == "BRANCH":
        return [text for branch in argument[1] for text in expand_tokens(branch, names)]
    if kind == "IN" and all(str(op) == "LITERAL" for op, _ in argument):
        return [chr(value) for _, value in argument]
    if kind == "SUBPATTERN":
        group, inner = argument[0], list(argument[-1])
        name = names.get(group, name)
        return [t for t in expand_group(inner, names, name)]
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        low, high, inner = argument
        if (low, high) == (0, 1):
            return [""] + expand_tokens(inner, names)
        return [wildcard(low, list(inner), name)]
    raise SystemExit(f"extract.py: no rule for {token!r}: teach expand_token about it")


def expand_group(tokens, names, name):
    texts = [""]
    for token in tokens:
        texts = [text + more for text in texts for more in expand_token(token, names, name)]
    return texts


def wildcard(low, inner, name):
    name = name or "any"
    if len(inner) == 1:
        kind = str(inner[0][0])
        if kind == "ANY":
            return "{" + name + "...}"
        if kind in ("NOT_LITERAL", "IN"):
            return "{" + name + ("+" if low else "") + "}"
    raise SystemExit(f"extract.py: no rule for a repeated {inner!r}: teach wildcard about it")


def answering(resource, template):
    """What a table of patterns answers a path of this template with, by method."""
    path = re.sub(r"\{[^}]*\}", "value", template)
    for pattern, methods in resource._routes.items():
        if pattern.match(path):
            return methods
    raise SystemExit(f"extract.py: Synapse would not find {path}: the template {template} is wrong")


def methods_of(resource):
    """The methods of a resource that is not a table of patterns."""
    found = set()
    for name in dir(resource):
        match = re.fullmatch(r"(?:_async_)?render_([A-Z]+)", name)
        if match and match[1] not in ("HEAD", "OPTIONS"):
            found.add(match[1])
    return sorted(found)


def walk(resource, path=""):
    """Yields (method, template, handler, callback) for all that a resource tree serves."""
    from synapse.http.server import JsonResource
    from twisted.web.resource import Resource

    if isinstance(resource, JsonResource):
        for pattern, methods in resource._routes.items():
            for template in expand(pattern.pattern):
                # A table answers only below the path where it hangs, and by the first pattern that fits.
                if template == path or template.startswith(path + "/"):
                    first = answering(resource, template)
                    for method in methods.keys() & first.keys():
                        entry = first[method]
                        yield method.decode(), template, entry.servlet_classname, entry.callback
    elif path:
        # Leaves answer whatever is below them, and some resources make children up as they are asked for.
        below = resource.isLeaf or type(resource).getChild is not Resource.getChild
        for method in methods_of(resource):
            handler = getattr(resource, "_async_render_" + method, None) or getattr(resource, "render_" + method)
            for template in [path, path + "/{rest...}"] if below else [path]:
                yield method, template, type(resource).__name__, handler
    for name, child in resource.children.items():
        yield from walk(child, path + "/" + name.decode())


# --- streams -------------------------------------------------------------------------------------
# A handler's code is read, not run: from the method that answers, through what it calls on the very
# objects that a process has built, to the places where Synapse looks whether it is a stream's writer.
# All streams are given to another process, so whatever is found matters for a process that is no writer.

SOURCES = {}  # file -> {first line: function's syntax tree}


def syntax_of(function):
    """The syntax tree of a function, or nothing where there is no source."""
    code = function.__code__
    if code.co_filename not in SOURCES:
        functions = SOURCES[code.co_filename] = {}
        try:
            with open(code.co_filename, encoding="utf-8") as source:
                tree = ast.parse(source.read())
        except (OSError, SyntaxError):
            return None
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions[min([node.lineno, *(d.lineno for d in node.decorator_list)])] = node
    return SOURCES[code.co_filename].get(code.co_firstlineno)


def writers_named(node):
    """The streams whose `…writers.STREAM` occurs in an expression."""
    return {
        n.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Attribute) and n.value.attr == "writers"
    }


FLAGS = {}


def flags_of(cls):
    """Attributes of a class that its constructors compute from lists of writers: name -> stream."""
    if cls not in FLAGS:
        FLAGS[cls] = found = {}
        for base in reversed(cls.__mro__):
            init = base.__dict__.get("__init__")
            tree = syntax_of(init) if isinstance(init, types.FunctionType) else None
            for node in ast.walk(tree) if tree else ():
                targets = (
                    node.targets if isinstance(node, ast.Assign)
                    else [node.target] if isinstance(node, ast.AnnAssign) and node.value is not None
                    else []
                )  # fmt: skip
                for target in targets:
                    if isinstance(target, ast.Attribute) and not isinstance(node.value, ast.Call):
                        streams = writers_named(node.value) | {
                            found[n.attr]
                            for n in ast.walk(node.value)
                            if isinstance(n, ast.Attribute) and n.attr in found
                        }
                        if len(streams) == 1:
                            found[target.attr] = streams.pop()
    return FLAGS[cls]


class Reader:
    """Reads handlers' code, each function once for each object that it belongs to."""

    def __init__(self, hs):
        self.hs = hs
        self.nodes = {}  # key -> (streams required, callables with the streams taken care of)
        self.alive = []  # keys hold ids of objects, which therefore must live

    def required(self, callback):
        """The streams of which a process has to be a writer for this callable to work."""
        found, seen, todo = set(), set(), [(callback, frozenset())]
        while todo:
            node = self.node(*todo.pop())
            if node is None or node in seen:
                continue
            seen.add(node)
            writes, calls = self.nodes[node]
            found |= writes
            todo.extend(calls)
        return sorted(found)

    def node(self, value, safe):
        """The key of a callable that was read, or nothing for one that need not be."""
        while hasattr(value, "__wrapped__") and not isinstance(value, type):
            owner = getattr(value, "__self__", None)
            value = value.__wrapped__
            if owner is not None and isinstance(value, types.FunctionType):
                value = types.MethodType(value, owner)
        owner = getattr(value, "__self__", None)
        function = getattr(value, "__func__", value)
        if not isinstance(function, types.FunctionType):
            return None
        module = function.__module__ or ""
        if not module.startswith("synapse.") or module.startswith(QUIET):
            return None
        key = (id(owner), id(function) if function.__closure__ else function.__code__, safe)
        if key not in self.nodes:
            self.alive.append((owner, function))
            self.writes, self.calls = set(), []
            tree = syntax_of(function)
            if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = dict(inspect.getclosurevars(function).nonlocals) if function.__closure__ else {}
                if owner is not None and tree.args.args:
                    names[tree.args.args[0].arg] = owner
                self.block(tree.body, names, function, safe)
            self.nodes[key] = (self.writes, self.calls)
        return key

    def block(self, statements, names, function, safe):
        for statement in statements:
            safe = self.statement(statement, names, function, safe)

    def statement(self, node, names, function, safe):
        """Follows one statement; returns the streams that are taken care of after it."""
        if isinstance(node, ast.Assert):
            self.require(self.guards(node.test, names)[0], safe)
        elif isinstance(node, ast.If):
            yes, no = self.guards(node.test, names)
            self.expressions(node.test, names, function, safe)
            leaves = node.body and isinstance(node.body[-1], (ast.Raise, ast.Return, ast.Continue))
            if no and isinstance(node.body[-1], ast.Raise):
                self.require(no, safe)
                return safe | no
            self.block(node.body, names, function, safe | yes)
            self.block(node.orelse, names, function, safe | no)
            return safe | no if leaves and no else safe
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self.block(node.body, dict(names), function, safe)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.expressions(child, names, function, safe)
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                names[node.targets[0].id] = self.value(node.value, names, function)
            for field in ("body", "orelse", "finalbody"):
                self.block(getattr(node, field, []), names, function, safe)
            for item in getattr(node, "items", []):
                self.expressions(item.context_expr, names, function, safe)
            for handler in getattr(node, "handlers", []):
                self.block(handler.body, names, function, safe)
        return safe

    def require(self, streams, safe):
        self.writes |= streams - safe

    def guards(self, test, names):
        """(streams that this process writes if the test holds, … if it does not)."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yes, no = self.guards(test.operand, names)
            return no, yes
        if isinstance(test, ast.BoolOp):
            pairs = [self.guards(value, names) for value in test.values]
            if isinstance(test.op, ast.And):
                return set().union(*(yes for yes, _ in pairs)), set()
            return set(), set().union(*(no for _, no in pairs))
        streams = writers_named(test)
        for node in ast.walk(test):
            if isinstance(node, ast.Attribute):
                owner = self.value(node.value, names, None)
                if owner is not None and node.attr in flags_of(type(owner)):
                    streams.add(flags_of(type(owner))[node.attr])
        negative = isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.NotIn, ast.NotEq))
        return (set(), streams) if negative else (streams, set())

    def expressions(self, node, names, function, safe):
        for part in ast.walk(node):
            if isinstance(part, (ast.Attribute, ast.Name)) and isinstance(part.ctx, ast.Load):
                value = self.value(part, names, function)
                if callable(value):
                    self.calls.append((value, safe))

    def value(self, node, names, function):
        """The object that an expression stands for, where that can be known without running anything."""
        if isinstance(node, ast.Await):
            return None
        if isinstance(node, ast.Name):
            if node.id in names:
                return names[node.id]
            return function.__globals__.get(node.id) if function else None
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value, names, function)
            if owner is None or isinstance(owner, (types.ModuleType, type)):
                return None
            static = inspect.getattr_static(owner, node.attr, None)
            if static is None and not hasattr(type(owner), "__getattr__"):
                return None
            if isinstance(static, property):
                return None
            try:
                return getattr(owner, node.attr)
            except Exception:  # noqa: BLE001 what cannot be looked up is not followed
                return None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
            owner = self.value(node.func.value, names, function)
            if owner is self.hs and node.func.attr.startswith("get_"):
                try:
                    return getattr(owner, node.func.attr)()
                except Exception:  # noqa: BLE001 such as the typing writer, which this process is not
                    return None
        return None


# Code below these only carries requests, or is what writers run.
QUIET = ("synapse.replication", "synapse.logging", "synapse.metrics", "synapse.util", "synapse.config")



# --- putting it together -------------------------------------------------------------------------


def in_child(function, *arguments):
    """What the function returns, computed in a forked child: Synapse keeps state in its modules."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        # Synapse complains about building several homeservers; what goes wrong is in the answer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        status = 1
        try:
            answer = {"ok": function(*arguments)}
        except BaseException as error:  # the parent decides what an error means
            answer = {"error": f"{type(error).__name__}: {error}"}
        try:
            with os.fdopen(writer, "w") as out:
                json.dump(answer, out)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as source:
        text = source.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "the child died"}


def extract_one(kind, config, known=()):
    """{endpoint: (handler, streams)} of one process; handlers of known endpoints are not read again."""
    root, hs = build(kind, config)
    rows = {}
    reader = Reader(hs)
    for method, template, handler, callback in walk(root):
        rows.setdefault(f"{method} {template}", [handler, callback])
    return {
        endpoint: (handler, [] if endpoint in known else reader.required(callback))
        for endpoint, (handler, callback) in rows.items()
    }


def extract_config(config, known=frozenset()):
    """{(endpoint, kinds): [handler, streams]} under one configuration, or why there is none."""
    found = {}
    for kind in ("worker", "media", "main", "main_media"):
        # No process writes a stream here, so a handler needs the same of each: it is read once.
        answer = in_child(extract_one, kind, config, known | found.keys())
        if "error" in answer:
            return None, f"{kind}: {answer['error']}"
        for endpoint, (handler, writes) in answer["ok"].items():
            row = found.setdefault(endpoint, [handler, set(), writes])
            row[1].add(kind)
            if kind == "main":
                row[0] = handler
    for row in found.values():
        if "main" in row[1]:
            row[1].discard("main_media")
    return {
        (endpoint, tuple(kind for kind in KINDS if kind in kinds)): [handler, writes]
        for endpoint, (handler, kinds, writes) in found.items()
    }, None


def merge(*configs):
    merged = {}
    for config in configs:
        for key, value in config.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **value} if both else value
    return merged


def experimental_options():
    """The keys of `experimental_features` that may register endpoints, each with a value that is not its default."""
    from synapse.config import experimental

    # What registers endpoints reads the option's attribute in one of these packages.
    texts = []
    for package in ("app", "rest", "federation/transport"):
        for directory, _, files in os.walk(os.path.join(os.path.dirname(experimental.__file__), "..", package)):
            for name in files:
                if name.endswith(".py"):
                    with open(os.path.join(directory, name), encoding="utf-8") as source:
                        texts.append(source.read())
    text = "".join(texts)
    options = {}
    for key, default in re.findall(
        r"experimental\.get\(\s*\"(\w+)\"(?:,\s*([\w\"{}]+))?", inspect.getsource(experimental)
    ):
        if key in EXPERIMENTAL_VALUES:
            value = EXPERIMENTAL_VALUES[key]
        elif default in ("False", "True") and f"experimental.{key}" in text:
            value = default == "False"
        else:
            continue
        label = f"experimental_features.{key}"
        options[label if value else "!" + label] = {"experimental_features": {key: value}}
    return options


def main():
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    from synapse.util import SYNAPSE_VERSION

    for module in ("synapse.app.homeserver", "synapse.app.generic_worker", "synapse.rest.client.media"):
        __import__(module)
    with tempfile.TemporaryDirectory() as directory:
        with open(directory + "/signing.key", "w") as key:
            key.write("ed25519 a_aaaa " + "A" * 43 + "\n")
        os.makedirs(directory + "/consent/en")
        for page in ("1", "success"):
            with open(f"{directory}/consent/en/{page}.html", "w") as out:
                out.write("x")
        OPTIONS["user_consent"]["user_consent"]["template_dir"] = directory + "/consent"
        base = base_config(directory)
        # Source files are parsed here, once for all children.
        for name, module in list(sys.modules.items()):
            if name.startswith("synapse.") and (getattr(module, "__file__", None) or "").endswith(".py"):
                syntax_of(types.SimpleNamespace(__code__=compile("0", module.__file__, "eval")))
        gc.disable()
        # The database's schema, once.
        answer = in_child(extract_one, "main", base)
        if "error" in answer:
            raise SystemExit(f"extract.py: cannot build Synapse's main process: {answer['error']}")

        always, problem = extract_config(base)
        if problem:
            raise SystemExit(f"extract.py: cannot build Synapse: {problem}")
        known = {endpoint for endpoint, _ in always}
        options = {**experimental_options(), **OPTIONS}
        skipped = []
        conditions = {}  # row -> configurations that gain it
        lost = {}  # row -> options that lose it
        every = dict(always)
        alone = {}
        for label, config in options.items():
            rows, problem = extract_config(merge(base, config), known)
            if rows is None:
                print(f"extract.py: left out {label} by itself: {problem}", file=sys.stderr)
                if "DependencyException" in problem or "ModuleNotFoundError" in problem:
                    skipped.append(label)
                continue
            alone[label] = rows
        for pair in PAIRS:
            if any(label not in options for label in pair):
                continue
            rows, problem = extract_config(merge(base, *(options[label] for label in pair)), known)
            if rows is None:
                print(f"extract.py: left out {' & '.join(pair)}: {problem}", file=sys.stderr)
                continue
            known = set(always).union(*(alone.get(label, ()) for label in pair))
            alone[" & ".join(pair)] = {
                **{row: value for row, value in always.items()},
                **{row: value for row, value in rows.items() if row not in known},
            }
        for label, rows in alone.items():
            for row, value in rows.items():
                every.setdefault(row, value)
                if row not in always:
                    conditions.setdefault(row, []).append(label)
            for row in always:
                if row not in rows:
                    lost.setdefault(row, []).append(label)

    endpoints = []
    for row, (handler, writes) in every.items():
        endpoint, kinds = row
        method, path = endpoint.split(" ", 1)
        entry = {"method": method, "path": path, "by": list(kinds)}
        when = " | ".join(sorted(conditions.get(row, [])))
        if row in lost:
            when = " & ".join(label[1:] if label.startswith("!") else "!" + label for label in sorted(lost[row]))
        if when:
            entry["when"] = when
        if writes:
            entry["writes"] = writes
        entry["handler"] = handler
        endpoints.append(entry)
    endpoints.sort(key=lambda e: (e["path"], e["method"], e.get("when", "")))
    print('{"synapse": ' + json.dumps(SYNAPSE_VERSION.split(" ")[0]) + ",")
    if skipped:
        print('"skipped": ' + json.dumps(skipped) + ",")
    print('"endpoints": [')
    print(",\n".join(json.dumps(entry) for entry in endpoints))
    print("]}")


if __name__ == "__main__":
    main()
