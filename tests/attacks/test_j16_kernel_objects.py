"""J16: the things of which the kernel has only so many: by job they are few, and others have theirs."""

from __future__ import annotations

from tests.attacks.jobs import ended, findings, numbers, output, submit, told
from tests.client import Person
from tests.waiting import eventually

NAMES = ("inotify_init1", "inotify_add_watch", "epoll_create1", "eventfd2", "mq_open", "shmget", "semget", "msgget",
         "add_key", "keyctl", "timer_create", "rt_sigqueueinfo", "io_setup", "memfd_create", "userfaultfd",
         "fanotify_init", "timerfd_create", "signalfd4", "pidfd_open")  # fmt: skip
CODE = """
import signal, socket, struct
n = GIVEN
def many(act, most=20_000):
    "How often it can be done, and what then."
    for count in range(most):
        try:
            act(count)
        except OSError as error:
            return [name_of(error), count]
    return ["no end", most]
def in_a_child(act, *arguments):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(many(act, *arguments)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    try:
        return json.loads(os.read(reader, 100))
    finally:
        os.close(reader), os.close(writer)
kept = []
for name, act in (("files", lambda _: os.open("/dev/null", 0)), ("sockets", lambda _: kept.append(socket.socket())),
                  ("epoll", lambda _: call(n["epoll_create1"], 0)), ("events", lambda _: call(n["eventfd2"], 0, 0)),
                  ("timer files", lambda _: call(n["timerfd_create"], 1, 0)),
                  ("pidfds", lambda _: os.pidfd_open(os.getpid())),
                  ("memory files", lambda _: os.memfd_create("x")), ("pipes", lambda _: os.pipe()),
                  ("inotify", lambda _: call(n["inotify_init1"], 0))):
    tell(name, in_a_child, act)
def watches():
    fd = libc.inotify_init1(0)
    def watch(count):
        path = b"/tmp/%d" % count
        os.close(os.open(path, os.O_CREAT))
        call(n["inotify_add_watch"], fd, path, 2)
    return in_a_child(watch)
tell("watches", watches)
def timer(count):
    call(n["timer_create"], 1, ctypes.create_string_buffer(struct.pack("=qii48x", 0, 34, 1), 64), (ctypes.c_int * 1)())
tell("timers", in_a_child, timer)
def queue(count):
    info = ctypes.create_string_buffer(struct.pack("=iiiiiiq", 34, 0, -1, 0, os.getpid(), 1000, 0), 128)
    call(n["rt_sigqueueinfo"], os.getpid(), 34, info)
def queued():
    signal.pthread_sigmask(signal.SIG_BLOCK, {34})
    return in_a_child(queue)
tell("signals", queued)
tell("mqueues", in_a_child, lambda count: call(n["mq_open"], b"q%d" % count, 0o102, 0o600, 0))
for name in ("shmget", "semget", "msgget"):
    arguments = {"shmget": (1 << 20, 0o1600), "semget": (8, 0o1600), "msgget": (0o1600,)}[name]
    tell(name, in_a_child, lambda count: call(n[name], count + 1, *arguments))
tell("keys", in_a_child, lambda count: call(n["add_key"], b"user", b"k%d" % count, b"x", 1, -3))
tell("keyring", call, n["keyctl"], 0, -3, 1)
tell("aio", in_a_child, lambda count: call(n["io_setup"], 128, (ctypes.c_ulong * 1)()))
tell("faults", call, n["userfaultfd"], 0)
tell("fanotify", call, n["fanotify_init"], 0, 0)
"""
OPEN = 64


def test_they_are_few(alice: Person, bob: Person) -> None:
    limits = {"open_files": OPEN, "processes": 64}
    job = submit(alice, CODE + "print(json.dumps(['up', 0]), flush=True)\nimport time\ntime.sleep(1000)",
                 numbers(*NAMES), limits=limits)  # fmt: skip
    eventually(lambda: b'["up", 0]' in output(alice, job) or alice.api.job(job["id"])["finished_at"])
    look = "import select, tempfile; select.epoll(); os.eventfd(0); tell('inotify', libc.inotify_init1, 0)"
    for person in (alice, bob):  # another job of the same user, and one of another
        assert findings(person, look)["inotify"] > 2
    alice.api.post(f"/api/jobs/{job['id']}/cancel")
    ended(alice, job)
    found = told(alice, job)
    assert found.pop("up") == 0, found
    for name in ("files", "sockets", "epoll", "events", "timer files", "pidfds", "memory files", "pipes"):
        answer, count = found.pop(name)
        assert answer == "EMFILE", name
        assert count < OPEN, name
    assert found.pop("inotify") == ["EMFILE", 32]
    answer, count = found.pop("watches")
    assert (answer, count <= 8192) == ("ENOSPC", True), count
    for name in ("timers", "signals"):
        answer, count = found.pop(name)
        assert answer == "EAGAIN", name
        assert count <= 1024, name
    assert found.pop("mqueues")[1] == 0
    for name, most in (("shmget", 16), ("semget", 64), ("msgget", 32)):
        answer, count = found.pop(name)
        assert (answer in ("ENOSPC", "ENOSYS", "ENOMEM"), count <= most) == (True, True), (name, answer, count)
    assert found == {
        "keys": ["EPERM", 0], "keyring": "EPERM", "aio": ["ENOSYS", 0], "faults": "EPERM",
        "fanotify": "EPERM"}  # fmt: skip
