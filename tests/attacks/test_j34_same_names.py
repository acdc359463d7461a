"""J34: two users at once with the same file names, ports, sockets and keys."""

from __future__ import annotations

from tests.attacks.jobs import findings, running
from tests.client import Person

TAKE = """
import ctypes, os, socket
for path in ("/tmp/same", "/job/same", "/dev/shm/same", "/var/tmp/also"):
    with open(path, "x") as file:
        file.write(WHO)
tcp = socket.create_server(("127.0.0.1", 8888))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 8888))
six = socket.create_server(("::1", 8888), family=socket.AF_INET6)
named = socket.socket(socket.AF_UNIX)
named.bind("/tmp/socket")
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0same")
abstract.listen()
libc = ctypes.CDLL(None, use_errno=True)
shared = libc.shmget(0x5A5A, 4096, 0o3666)  # IPC_CREAT | IPC_EXCL
queue = libc.msgget(0x5A5A, 0o3666)
"""
STAY = """
print("up", flush=True)
import time
while not any(os.path.exists(f"{path}/stop") for path in ("/tmp", "/job", "/dev/shm")):
    try:
        tcp.settimeout(0.05)
        tcp.accept()
        break
    except TimeoutError:
        pass
"""
LOOK = """
print(json.dumps(["shared", shared >= 0 or ctypes.get_errno() == errno.ENOSYS]))
for path in ("/tmp", "/job", "/dev/shm"):
    tell(path, lambda: [open(f"{path}/same").read(), os.stat(f"{path}/same").st_uid])
    open(f"{path}/stop", "w").close()
def visit():
    made = socket.create_connection(("127.0.0.1", 8888))
    return "its own" if tcp.accept()[0].getpeername() == made.getsockname() else "another"
tell("visit", visit)
tell("hostname", socket.gethostname)
tell("inside", lambda: sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[:1])
"""


def test_each_has_them_for_itself(alice: Person, bob: Person) -> None:
    with running(bob, "WHO = 'bob'\n" + TAKE + STAY, shell="python"):
        found = findings(alice, "WHO = 'alice'\n" + TAKE + LOOK)
    assert found == {
        "shared": True,
        **{path: ["alice", 1000] for path in ("/tmp", "/job", "/dev/shm")},
        "visit": "its own",
        "hostname": "job",
        "inside": [2],
    }
