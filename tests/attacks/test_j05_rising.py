"""J5: becoming somebody else by programs and files that make one so."""

from __future__ import annotations

from tests.attacks.jobs import findings, running
from tests.client import Person

CODE = """
import shutil, stat, subprocess
def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return line.split()[1:]
def run(*argv):
    "Whom a program ran as, or that it could not."
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        return name_of(error)
    return ran.stdout.strip() or f"exit {min(ran.returncode, 1)}"
for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
    tell(f"Cap{kind}", lambda: int(status(f"Cap{kind}")[0], 16))
tell("NoNewPrivs", lambda: status("NoNewPrivs"))
tell("Uid", lambda: status("Uid"))
tell("groups", os.getgroups)
for name, act, *arguments in (("setuid", os.setuid, 0), ("setreuid", os.setreuid, 0, 0), ("setgid", os.setgid, 0),
                              ("seteuid", os.seteuid, 65534), ("setgroups", os.setgroups, [0]),
                              ("chown", os.chown, "/tmp", 0, 0), ("chroot", os.chroot, "/job")):
    tell(name, act, *arguments)
for folder in ("/tmp", "/job", "/dev/shm"):
    copy = folder + "/id"
    shutil.copy("/usr/bin/id", copy)
    tell(f"capabilities of a file in {folder}", os.setxattr, copy, "security.capability",
         bytes.fromhex("0100000280000000000000000000000000000000"))
    os.chmod(copy, 0o6755)
    tell(f"set-uid in {folder}", run, copy, "-u")
    tell(f"mount of {folder}", lambda: bool(os.statvfs(folder).f_flag & os.ST_NOSUID))
for path in ("/", "/usr", "/usr/bin", "/etc/ssl/certs", "/run/job"):
    tell(f"mount of {path}", lambda: bool(os.statvfs(path).f_flag & os.ST_NOSUID))
for argv in (("su", "-c", "id -u"), ("sudo", "-n", "id", "-u"), ("pkexec", "id", "-u"),
             ("doas", "id", "-u"), ("sg", "root", "id -u"), ("runuser", "-u", "root", "id"),
             ("setpriv", "--reuid", "0", "id", "-u"), ("unshare", "-Ur", "id", "-u"), ("unshare", "-r", "id"),
             ("chsh", "-s", "/bin/sh"), ("passwd", "-d", "root"), ("mount", "-t", "tmpfs", "x", "/tmp")):
    tell(" ".join(argv), run, *argv)
child = os.fork()
if not child:
    import time
    time.sleep(1000)
for mapper in ("newuidmap", "newgidmap"):
    tell(mapper, run, mapper, str(child), "0", "0", "1")
os.kill(child, 9)
"""


def test_nobody_rises(alice: Person, bob: Person) -> None:
    with running(bob):
        found = findings(alice, CODE)
    assert found.pop("Uid") == ["1000"] * 4
    assert found.pop("NoNewPrivs") == ["1"]
    assert set(found.pop("groups")) <= {1000, 65534}
    expected = {
        **{f"Cap{kind}": 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")},
        **{f"mount of {path}": True for path in ("/", "/usr", "/usr/bin", "/etc/ssl/certs", "/run/job")},
    }
    for folder in ("/tmp", "/job", "/dev/shm"):
        expected |= {f"capabilities of a file in {folder}": "EPERM", f"set-uid in {folder}": "1000"}
        expected |= {f"mount of {folder}": True}
    assert {name: found.pop(name) for name in expected} == expected
    assert {found.pop(name) for name in ("setuid", "setreuid", "setgid", "seteuid")} <= {"EPERM", "EINVAL"}
    assert {found.pop(name) for name in ("setgroups", "chown", "chroot")} <= {"EPERM", "EINVAL"}
    # What is left are programs: not there, or refused.
    assert len(found) == 14
    assert {name: what for name, what in found.items() if what not in ("ENOENT", "EACCES", "EPERM", "exit 1")} == {}
