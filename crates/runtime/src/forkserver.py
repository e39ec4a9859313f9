# SPDX-License-Identifier: Apache-2.0
"""Runs the Synapse processes of one stack as forks of a single parent that has Synapse imported.

Importing Synapse costs a second of CPU and some 90 MiB in each process. This program pays once,
and forks a child for every process that the supervisor asks for. From there on a child is an
ordinary Synapse process: its own session, log, reactor, signal handlers and command line.

Commands come as JSON lines on stdin:

    {"op": "prepare", "args": ["-c", "shared.yaml", "-c", "sync_1.yaml"]}
    {"op": "spawn", "id": 7, "name": "sync_1", "app": "synapse.app.generic_worker",
     "args": ["-c", "shared.yaml", "-c", "sync_1.yaml"], "log": "/path/sync_1.log"}

`prepare` is a hint that a spawn with the very same `args` follows within a minute: the
configuration is parsed here, which makes that child quicker and smaller. Many should be prepared
before the first of them is spawned. `spawn` takes an optional `umask` (a number).

Events leave as JSON lines on stdout:

    {"event": "ready", "pid": 1, "synapse": "1.163.2", "python": "3.11.7", "optimised": true}
    {"event": "spawned", "id": 7, "name": "sync_1", "pid": 2}
    {"event": "schema", "id": 1, "name": "main", "pid": 3}
    {"event": "exit", "id": 7, "name": "sync_1", "pid": 2, "code": 0, "signal": null}
    {"event": "error", "id": 7, "message": "..."}
    {"event": "unsupported", "reason": "..."}

`schema` says that the main process has found or made the database schema: workers may start.
`unsupported` is followed by exit code 78: the supervisor then starts each process by itself.

The supervisor signals children by their pid; this program reaps them. The end of stdin, or
SIGTERM, stops every child and then this program. Should this program be killed, the kernel kills
the children.

With the argument `--no-shortcuts` nothing is replaced in the libraries' and Synapse's start-up.
"""

import gc

# A collection visits every object, and a page once written is no longer shared with the children.
gc.disable()

import atexit
import collections.abc
import ctypes
import functools
import importlib
import inspect
import json
import logging
import os
import platform
import select
import signal
import sys
import threading
import time

EXIT_UNSUPPORTED = 78
MAIN_APP = "synapse.app.homeserver"
APPS = (MAIN_APP, "synapse.app.generic_worker", "synapse.app.media_repository")

# Bytes of one command. A command holds a few paths; this only bounds memory.
LINE_LIMIT = 64 * 1024
# Seconds between SIGTERM and SIGKILL when everything stops.
STOP_SECONDS = 10.0
# Seconds for which a prepared configuration may wait for its spawn.
PREPARED_SECONDS = 60.0

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


class Unsupported(Exception):
    """This Python, Twisted or Synapse is not one that can be forked in this way."""


class Refused(Exception):
    """A command that cannot be carried out as it stands."""


# --- The supervisor's side ---------------------------------------------------------------------


class Channel:
    """The pipes to the supervisor, moved to where no library prints to or reads from."""

    def __init__(self):
        self.commands = os.dup(0)
        self.events = os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        self._partial = b""
        self._skipping = False

    def send(self, event, **fields):
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        try:
            # Up to PIPE_BUF bytes go out whole, so that a child's `schema` never splits a line.
            while line:
                line = line[os.write(self.events, line) :]
        except BrokenPipeError:
            # The supervisor is gone; the end of stdin says so as well.
            pass

    def receive(self):
        """The commands that have come whole, and whether that was the last of them."""
        chunk = os.read(self.commands, 65536)
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if self._skipping and lines:
            self._skipping = False
            del lines[0]
        if self._skipping or len(self._partial) > LINE_LIMIT:
            if not self._skipping:
                self.send("error", id=None, message=f"a command is longer than {LINE_LIMIT} bytes")
            self._skipping = True
            self._partial = b""
        return lines, not chunk


class Title:
    """Shows a process's name where `ps` and `top` look: the task's name and its arguments."""

    def __init__(self):
        self._libc = ctypes.CDLL(None)
        self._start = self._size = 0
        try:
            with open("/proc/self/stat", "rb") as f:
                fields = f.read().rpartition(b")")[2].split()
            # proc_pid_stat(5): fields 48 and 49, arg_start and arg_end.
            start, end = int(fields[45]), int(fields[46])
        except (OSError, ValueError, IndexError):
            return
        if 0 < start < end:
            self._start, self._size = start, end - start

    def prctl(self, option, argument):
        self._libc.prctl(option, argument, 0, 0, 0)

    def set(self, name):
        self.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))
        if self._size > 1:
            text = f"synapse: {name}".encode()[: self._size - 1]
            ctypes.memmove(self._start, text.ljust(self._size, b"\0"), self._size)


class Server:
    """Carries out commands, reaps children, stops everything."""

    SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self, channel, mains, revive, prepared):
        self.channel = channel
        self.mains = mains
        self.revive = revive
        self.prepared = prepared
        self.title = Title()
        self.children = {}
        self.unfrozen = True
        self.stopping = False
        self.pid = os.getpid()
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        # A terminal's Ctrl-C and hang-up are the supervisor's, which stops things in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_sigterm(self, *_):
        self.stopping = True

    def run(self):
        poll = select.poll()
        poll.register(self.wake_read, select.POLLIN)
        poll.register(self.channel.commands, select.POLLIN)
        while not self.stopping:
            ready = {fd for fd, _ in poll.poll()}
            self._drain()
            self._reap()
            if self.channel.commands in ready:
                lines, ended = self.channel.receive()
                for line in lines:
                    self._command(line)
                self.stopping = self.stopping or ended
        self._stop()

    def _drain(self):
        try:
            while os.read(self.wake_read, 4096):
                pass
        except BlockingIOError:
            pass

    def _reap(self):
        while self.children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.children:
                number, name = self.children.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                self.channel.send(
                    "exit",
                    id=number,
                    name=name,
                    pid=pid,
                    code=code if code >= 0 else None,
                    signal=-code if code < 0 else None,
                )

    def _command(self, line):
        if not line.strip():
            return
        number = None
        try:
            command = json.loads(line)
            if not isinstance(command, dict):
                raise Refused("a command is a JSON object")
            number = command.get("id")
            op = command.pop("op", None)
            if op == "spawn":
                self._spawn(**command)
            elif op == "prepare":
                self._prepare(**command)
            else:
                raise Refused(f"unknown op {op!r}")
        except (Refused, ValueError, TypeError, RecursionError, OSError) as e:
            self.channel.send("error", id=number, message=f"{type(e).__name__}: {e}")

    def _prepare(self, *, args, **_):
        _check_args(args)
        if self.prepared is not None:
            self.prepared.prepare(args)
            self.unfrozen = True
            # Cheap, and the one thing that would make every later fork unsafe.
            if len(os.listdir("/proc/self/task")) != 1:
                self.channel.send("unsupported", reason="parsing a configuration started a thread")
                self._stop()
                raise SystemExit(EXIT_UNSUPPORTED)

    def _spawn(self, *, id, name, app, args, log, umask=None):
        if not isinstance(name, str) or not name or "\0" in name:
            raise Refused("name must be a string")
        if app not in self.mains:
            raise Refused(f"app must be one of {', '.join(self.mains)}")
        _check_args(args)
        if not isinstance(log, str):
            raise Refused("log must be a path")
        if umask is not None and (type(umask) is not int or not 0 <= umask <= 0o777):
            raise Refused("umask must be a number from 0 to 511")
        if self.unfrozen:
            self.unfrozen = False
            gc.freeze()
            plug_holes()
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        # A signal that reached the child before its handlers are reset would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._child(id, name, app, args, out, umask)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)
            os.close(out)
        self.children[pid] = (id, name)
        if self.prepared is not None:
            self.prepared.forget(args)
        self.channel.send("spawned", id=id, name=name, pid=pid)

    def _child(self, id, name, app, args, out, umask):
        """Turns this fork into a Synapse process. Never returns."""
        code = 1
        try:
            self.title.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.pid:
                # The parent died before the line above: nobody would ever stop this process.
                os._exit(1)
            os.setsid()
            os.dup2(out, 1)
            os.dup2(out, 2)
            signal.set_wakeup_fd(-1)
            for number in self.SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)
            for fd in (out, self.wake_read, self.wake_write, self.channel.commands):
                os.close(fd)
            if app != MAIN_APP or not self._announce_schema(id, name):
                os.close(self.channel.events)
            if umask is not None:
                os.umask(umask)
            self.title.set(name)
            sys.argv = [app, *args]
            self.revive()
            self.mains[app]()
            code = 0
        except SystemExit as e:
            if isinstance(e.code, int):
                code = e.code
            elif e.code is None:
                code = 0
            else:
                print(e.code, file=sys.stderr)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            _leave(code)

    def _announce_schema(self, id, name):
        """In the main process: says when the database schema is there, then closes the channel.

        Without it the workers wait until the main process is healthy, half a second more.
        """
        from synapse.storage import databases

        plain = getattr(databases, "prepare_database", None)
        if plain is None or "config" not in inspect.signature(plain).parameters:
            return False
        find = inspect.signature(plain).bind
        done = 0

        def prepare_database(*args, **kwargs):
            nonlocal done
            plain(*args, **kwargs)
            done += 1
            config = find(*args, **kwargs).arguments["config"]
            if done == len(config.database.databases):
                self.channel.send("schema", id=id, name=name, pid=os.getpid())
                os.close(self.channel.events)

        databases.prepare_database = prepare_database
        return True

    def _stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.children:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
            deadline = time.monotonic() + STOP_SECONDS
            self._reap()
            while self.children and (left := deadline - time.monotonic()) > 0:
                select.select([self.wake_read], [], [], left)
                self._drain()
                self._reap()


def _check_args(args):
    if not isinstance(args, list) or not all(isinstance(a, str) for a in args):
        raise Refused("args must be a list of strings")


def _leave(code):
    """Ends a child as the interpreter would, but without taking down the parent's objects."""
    try:
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        pass
    os._exit(code)


# --- Importing, and being fit to fork ----------------------------------------------------------


def load_synapse():
    """Imports Synapse around a reactor that does not live yet: the applications' `main`
    functions, and what brings the reactor to life in a child.

    Twisted's epoll reactor must not be shared across a fork, yet many modules of Synapse take
    hold of the reactor as they are imported. So the reactor is only allocated here, and
    initialised in each child: it is the same object everywhere, and a real one.
    """
    asked = os.environ.get("SYNAPSE_ASYNC_IO_REACTOR", "").lower()
    if asked not in ("", "0", "f", "false", "n", "no", "off"):
        raise Unsupported("SYNAPSE_ASYNC_IO_REACTOR asks for another reactor")
    from twisted.internet.epollreactor import EPollReactor
    from twisted.internet.main import installReactor

    reactor = EPollReactor.__new__(EPollReactor)
    installReactor(reactor)

    # Synapse looks for the reactor's poller as it is imported, and would warn that there is none;
    # `revive` has it look again.
    metrics_log = logging.getLogger("synapse.metrics._reactor_metrics")
    metrics_log.disabled = True
    mains = {app: importlib.import_module(app).main for app in APPS}
    metrics_log.disabled = False

    from synapse.app import _base
    from synapse.metrics._reactor_metrics import install_reactor_metrics

    for name in LATE_IMPORTS:
        try:
            importlib.import_module(name)
        except ImportError:
            pass

    # Synapse collects garbage by its own clock, and once before that.
    collects_itself = hasattr(_base, "install_gc_manager")

    def revive():
        if not collects_itself:
            gc.enable()
        reactor.__init__()
        install_reactor_metrics(reactor)

    return mains, revive


# What Synapse or its libraries import only as they start or serve.
LATE_IMPORTS = (
    "encodings.idna",
    "encodings.unicode_escape",
    "hiredis",
    "psycopg2",
    "synapse.replication.tcp.redis",
    "synapse.rest.client.media",
    "txredisapi",
)


def open_files():
    """This process's file descriptors and what they are."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            # The listing's own.
            pass
    return found


def check_forkable(before):
    """No thread may exist where processes are forked, and nothing shared that is connected."""
    if threading.active_count() != 1 or len(os.listdir("/proc/self/task")) != 1:
        raise Unsupported("importing Synapse started a thread")
    for fd, target in open_files().items():
        if before.get(fd) != target and target.startswith(("socket:", "anon_inode:[eventpoll]")):
            raise Unsupported(f"importing Synapse opened {target}")


def plug_holes():
    """Uses up the free blocks among this process's objects, so that a child's objects go to
    fresh, dense pages, not each into a hole of another shared page, which copies that page.

    It knows CPython's and glibc's allocators; with others it does nothing worse than to keep a
    few megabytes.
    """
    if platform.libc_ver()[0] != "glibc" or sys.maxsize < 2**32:
        return
    # CPython's: a block at the very start of a 16 KiB pool means that no used pool had room.
    pool_size, pool_header = 16384, 48
    for size in range(16, 513, 16):
        budget = 512 * 1024
        while budget > 0:
            block = _object_malloc(size)
            if block is None:
                return
            if block % pool_size == pool_header:
                _object_free(block)
                break
            budget -= size
    # glibc's: a block above all others comes from the top of the heap, so no hole was as large.
    marks = [_malloc(LARGEST_HOLE) for _ in range(32)]
    top = max(mark or 0 for mark in marks)
    budget = 16 * 1024 * 1024
    size = LARGEST_HOLE
    while size >= 24 and budget > 0:
        block = _malloc(size)
        if block is None:
            break
        if block < top:
            budget -= size
        else:
            _free(block)
            size -= 16 if size < 2048 else size // 320 * 16
    for mark in marks:
        _free(mark)


# Below glibc's threshold for giving a block its own mapping.
LARGEST_HOLE = 100_000


def _function(library, name, result, argument):
    function = getattr(library, name)
    function.restype, function.argtypes = result, (argument,)
    return function


_object_malloc = _function(ctypes.pythonapi, "PyObject_Malloc", ctypes.c_void_p, ctypes.c_size_t)
_object_free = _function(ctypes.pythonapi, "PyObject_Free", None, ctypes.c_void_p)
_malloc = _function(ctypes.CDLL(None), "malloc", ctypes.c_void_p, ctypes.c_size_t)
_free = _function(ctypes.CDLL(None), "free", None, ctypes.c_void_p)


# --- Shortcuts: the same outcome with less work and fewer pages written -------------------------


def install_shortcuts():
    """Replaces work that every Synapse process repeats at its start with the same outcome.

    Each shortcut looks first whether what it replaces is what it knows, and is left out
    otherwise. Returns whether all are in place.
    """
    complete = True
    for shortcut in (
        yaml_by_libyaml,
        templates_compiled_once,
        schemas_checked_once,
        requirements_read_once,
        authorities_read_once,
        levels_set_once,
        warm_up,
    ):
        try:
            shortcut()
        except Exception as e:
            complete = False
            print(f"left out {shortcut.__name__}: {type(e).__name__}: {e}", file=sys.stderr)
    return complete


def expect_parameters(function, *names):
    """Fails unless the function's first parameters have these names."""
    found = tuple(inspect.signature(function).parameters)[: len(names)]
    if found != names:
        raise Unsupported(f"{function.__qualname__} takes {found}, not {names}")


def yaml_by_libyaml():
    """Parses YAML ten times as fast. What does not parse is left to the slow parser, for the
    wording of its errors."""
    import yaml

    slow, loader = yaml.safe_load, yaml.CSafeLoader
    expect_parameters(slow, "stream")

    def safe_load(stream):
        text = stream if isinstance(stream, (str, bytes)) else stream.read()
        try:
            return yaml.load(text, loader)
        except yaml.YAMLError:
            # Below, so that the error does not come as the consequence of this one.
            pass
        if text is not stream:
            stream.seek(0)
        return slow(stream)

    yaml.safe_load = safe_load


def templates_compiled_once():
    """Gives every jinja environment one cache of compiled templates, which the children share.
    The key holds all that the compiler looks at."""
    import jinja2
    from jinja2.bccache import BytecodeCache

    class Memory(BytecodeCache):
        known = {}

        def get_bucket(self, environment, name, filename, source):
            bucket = super().get_bucket(environment, name, filename, source)
            escape = environment.autoescape
            bucket.key = (
                name,
                filename,
                source,
                escape(name) if callable(escape) else escape,
                *(getattr(environment, option) for option in TEMPLATE_OPTIONS),
                *environment.extensions,
            )
            bucket.code = self.known.get(bucket.key)
            return bucket

        def load_bytecode(self, bucket):
            pass

        def dump_bytecode(self, bucket):
            self.known[bucket.key] = bucket.code

    memory = Memory()
    plain = jinja2.Environment.__init__
    hash(memory.get_bucket(jinja2.Environment(), "probe", None, "").key)

    @functools.wraps(plain)
    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        if self.bytecode_cache is None:
            self.bytecode_cache = memory

    jinja2.Environment.__init__ = init


TEMPLATE_OPTIONS = (
    "__class__",
    "code_generator_class",
    "is_async",
    "optimized",
    "sandboxed",
    "undefined",
    "block_start_string",
    "block_end_string",
    "variable_start_string",
    "variable_end_string",
    "comment_start_string",
    "comment_end_string",
    "line_statement_prefix",
    "line_comment_prefix",
    "trim_blocks",
    "lstrip_blocks",
    "newline_sequence",
    "keep_trailing_newline",
)


def schemas_checked_once():
    """Checks a JSON schema against its meta-schema only the first time that it is used."""
    from jsonschema import Draft202012Validator

    plain = Draft202012Validator.check_schema.__func__
    expect_parameters(plain, "cls", "schema")
    valid = set()

    def check_schema(cls, schema, *args, **kwargs):
        key = None
        if not args and not kwargs:
            key = (cls, json.dumps(schema, sort_keys=True))
            if key in valid:
                return
        plain(cls, schema, *args, **kwargs)
        if key:
            valid.add(key)

    Draft202012Validator.check_schema = classmethod(check_schema)


def requirements_read_once():
    """Reads Synapse's list of requirements once for each optional feature."""
    from synapse.util import check_dependencies

    plain = check_dependencies._dependencies_for_extra
    expect_parameters(plain, "extra")
    known = functools.lru_cache(maxsize=None)(lambda extra: tuple(plain(extra)))
    check_dependencies._dependencies_for_extra = lambda extra: known(extra)


def authorities_read_once():
    """Reads the system's certificate authorities into one store, which the children share until
    the files change."""
    from OpenSSL import SSL
    from twisted.internet._sslverify import OpenSSLDefaultPaths

    lib, ffi = SSL._lib, SSL._ffi
    places = (
        os.environ.get("SSL_CERT_FILE", ""),
        os.environ.get("SSL_CERT_DIR", ""),
        ffi.string(lib.X509_get_default_cert_file()),
        ffi.string(lib.X509_get_default_cert_dir()),
        *SSL._CERTIFICATE_FILE_LOCATIONS,
        *SSL._CERTIFICATE_PATH_LOCATIONS,
    )
    plain = OpenSSLDefaultPaths._addCACertsToContext
    expect_parameters(plain, "self", "context")
    seen = [signature(place) for place in places]
    owner = SSL.Context(SSL.TLS_METHOD)
    plain(OpenSSLDefaultPaths(), owner)
    store = lib.SSL_CTX_get_cert_store(owner._context)
    up_ref, set_store = lib.X509_STORE_up_ref, lib.SSL_CTX_set_cert_store

    def add(self, context, owner=owner):
        if [signature(place) for place in places] == seen and up_ref(store) == 1:
            set_store(context._context, store)
        else:
            plain(self, context)

    OpenSSLDefaultPaths._addCACertsToContext = add


def levels_set_once():
    """Sets the log levels that Synapse uses without a log configuration. Setting a level writes
    to every logger there is; setting the level that a logger has does nothing."""
    from synapse.config import logger

    expect_parameters(logger._setup_stdlib_logging, "config", "log_config_path")
    expect_parameters(logger._load_logging_config, "log_config_path")
    plain_set, plain_load = logging.Logger.setLevel, logger._load_logging_config
    expect_parameters(plain_set, "self", "level")
    check = logging._checkLevel
    early = {
        logging.getLogger(""): logging.INFO,
        logging.getLogger("synapse.storage.SQL"): logging.INFO,
    }
    before = {log: log.level for log in early}

    def set_level(self, level):
        if check(level) != self.level:
            plain_set(self, level)

    def load_logging_config(log_config_path):
        # A log configuration starts from Python's levels, not from these.
        while before:
            plain_set(*before.popitem())
        plain_load(log_config_path)

    for log, level in early.items():
        plain_set(log, level)
    logging.Logger.setLevel = set_level
    logger._load_logging_config = load_logging_config


def warm_up():
    """Makes what Synapse and its libraries make at first use: compiled templates, checked
    schemas, cipher lists, answers of abstract base classes."""
    from synapse.config.homeserver import HomeServerConfig
    from synapse.crypto.context_factory import FederationPolicyForHTTPS, RegularPolicyForHTTPS

    config = HomeServerConfig()
    config.parse_config_dict(
        {
            "server_name": "localhost",
            "report_stats": False,
            "suppress_key_server_warning": True,
            "trusted_key_servers": [],
            "signing_key": "ed25519 none " + "A" * 43,
            "macaroon_secret_key": "none",
            "database": {"name": "psycopg2", "args": {}},
            "redis": {"enabled": True},
            # Synapse makes this directory, so it is one that is there.
            "media_store_path": os.curdir,
        },
        config_dir_path="",
        data_dir_path="",
    )
    FederationPolicyForHTTPS(config)
    RegularPolicyForHTTPS()
    # Every log record with one argument asks whether it is a mapping.
    for value in ("", b"", 0, 0.0, True, None, (), [], set(), frozenset(), {}, ValueError()):
        isinstance(value, collections.abc.Mapping)


def signature(path):
    """What changes when a file or directory does, or None without one."""
    try:
        s = os.stat(path)
    except OSError:
        return None
    return s.st_dev, s.st_ino, s.st_mtime_ns, s.st_size


def names_module(value):
    """Whether a configuration asks anywhere for a Python module: `{"module": ...}`."""
    if isinstance(value, dict):
        return "module" in value or any(map(names_module, value.values()))
    return isinstance(value, list) and any(map(names_module, value))


class NotPreparable(Exception):
    """A configuration that only the child itself should parse."""


class Prepared:
    """Configurations parsed here, ahead of the forks that use them.

    Parsing in the child would copy ten megabytes of pages that differ in their reference counts
    alone. A configuration is kept if it parsed without a word, without importing code that this
    program does not know, and while its files stay as they are; otherwise the child parses it by
    itself, complaints included.
    """

    # Options that import libraries which may start threads.
    FOREIGN = frozenset(("ldap_config", "opentracing", "saml2_config", "sentry"))

    def __init__(self):
        from synapse.config import _base, cache
        from synapse.config.homeserver import HomeServerConfig

        plain_load = HomeServerConfig.load_config.__func__
        plain_read = _base.read_config_files
        expect_parameters(plain_load, "cls", "description", "argv_options")
        expect_parameters(plain_read, "config_files")
        self._entries = {}
        self._parsing = False
        self._load = HomeServerConfig.load_config
        # The one place where parsing leaves something outside of the configuration.
        self._globals = cache.properties
        self._get_globals()

        def read_config_files(config_files):
            merged = plain_read(config_files)
            if self._parsing and (not self.FOREIGN.isdisjoint(merged) or names_module(merged)):
                raise NotPreparable
            return merged

        def load_config(cls, description, argv_options):
            if cls is HomeServerConfig and (config := self._take(argv_options)) is not None:
                return config
            return plain_load(cls, description, argv_options)

        _base.read_config_files = read_config_files
        HomeServerConfig.load_config = classmethod(load_config)

    def prepare(self, args):
        now = time.monotonic()
        for key in [k for k, entry in self._entries.items() if now - entry[-1] > PREPARED_SECONDS]:
            del self._entries[key]
        files = [b for a, b in zip(args, args[1:]) if a in ("-c", "--config-path")]
        seen = [signature(file) for file in files]
        said = os.memfd_create("said")
        kept = [os.dup(1), os.dup(2)]
        config = None
        self._parsing = True
        try:
            os.dup2(said, 1)
            os.dup2(said, 2)
            config = self._load("Synapse", args)
        except (Exception, SystemExit):
            # The child meets the same, and says so in its own log.
            pass
        finally:
            self._parsing = False
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            silent = os.fstat(said).st_size == 0
            for fd in (said, *kept):
                os.close(fd)
        if config is not None and silent and all(seen):
            self._entries[tuple(args)] = (config, self._get_globals(), files, seen, now)

    def forget(self, args):
        self._entries.pop(tuple(args), None)

    def _take(self, args):
        entry = self._entries.pop(tuple(args), None)
        if entry is None:
            return None
        config, properties, files, seen, since = entry
        if time.monotonic() - since > PREPARED_SECONDS or [signature(f) for f in files] != seen:
            return None
        for name, value in properties.items():
            setattr(self._globals, name, value)
        return config

    def _get_globals(self):
        return {
            name: getattr(self._globals, name)
            for name in ("default_factor_size", "resize_all_caches_func")
        }


def main():
    channel = Channel()
    shortcuts = "--no-shortcuts" not in sys.argv[1:]
    prepared = None
    files = open_files()
    try:
        mains, revive = load_synapse()
        if shortcuts:
            shortcuts = install_shortcuts()
            try:
                prepared = Prepared()
            except Exception as e:
                shortcuts = False
                print(f"left out prepare: {type(e).__name__}: {e}", file=sys.stderr)
        check_forkable(files)
        from synapse.util import SYNAPSE_VERSION
    except BaseException as e:
        channel.send("unsupported", reason=f"{type(e).__name__}: {e}")
        raise SystemExit(EXIT_UNSUPPORTED) from e

    server = Server(channel, mains, revive, prepared)
    gc.collect()
    channel.send(
        "ready",
        pid=server.pid,
        synapse=SYNAPSE_VERSION,
        python=platform.python_version(),
        optimised=shortcuts,
    )
    server.run()


if __name__ == "__main__":
    main()
