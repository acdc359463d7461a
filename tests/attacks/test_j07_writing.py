"""J7: writing, replacing and deleting where a job has no business, and setting the kernel."""

from __future__ import annotations

from tests.attacks.jobs import findings, lines
from tests.client import Person

CODE = """
for folder in ("/", "/usr", "/usr/bin", "/usr/lib", "/etc", "/etc/ssl", "/etc/ssl/certs", "/etc/alternatives", "/dev",
               "/run", "/run/job", "/var", "/bin", "/lib"):
    tell(f"file in {folder}", open, f"{folder}/attack", "w")
    tell(f"folder in {folder}", os.mkdir, f"{folder}/attacks")
    tell(f"link in {folder}", os.symlink, "/tmp", f"{folder}/attacking")
    tell(f"socket in {folder}", os.mkfifo, f"{folder}/attacked")
for path in ("/usr/bin/env", "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf", "/run/job/script",
             "/bin/sh", "/usr", "/proc", "/dev/null", "/proc/cmdline"):
    name = path.strip("/").replace("/", ".")
    if path not in ("/dev/null", "/proc/cmdline"):
        tell(f"open {path}", os.open, path, os.O_WRONLY)
        tell(f"truncate {path}", os.truncate, path, 0)
    tell(f"chmod {path}", os.chmod, path, 0o777)
    tell(f"utime {path}", os.utime, path, (0, 0))
    tell(f"rename {path}", os.rename, path, f"{path}.old")
    tell(f"take {path}", os.rename, path, f"/tmp/{name}")
    tell(f"replace {path}", os.rename, "/run/job/script", path)
    tell(f"unlink {path}", os.unlink, path)
    tell(f"link {path}", os.link, path, f"/tmp/{name}")
    tell(f"attribute of {path}", os.setxattr, path, "user.attack", b"1")
for path in ("kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/pid_max", "kernel/shmmax",
             "kernel/randomize_va_space", "vm/overcommit_memory", "vm/drop_caches", "vm/swappiness", "fs/suid_dumpable",
             "net/ipv4/ip_forward", "net/ipv4/tcp_max_tw_buckets", "user/max_user_namespaces",
             "user/max_inotify_instances"):
    path = f"/proc/sys/{path}"
    if os.path.exists(path):
        tell(path, os.open, path, os.O_WRONLY)
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/sysrq", "/proc/irq/default_smp_affinity", "/proc/mtrr",
             "/proc/self/oom_score_adj", "/proc/self/uid_map", "/proc/self/setgroups", "/proc/self/attr/current",
             "/proc/self/coredump_filter", "/proc/1/oom_score_adj", "/proc/kmsg", "/proc/kcore", "/proc/acpi/wakeup",
             "/proc/bus/pci", "/sys/power/state", "/sys/fs/cgroup/cgroup.procs", "/sys/kernel/debug",
             "/proc/sys/fs/binfmt_misc/register", "/proc/fs", "/proc/driver"):
    tell(path, os.open, path, os.O_WRONLY)
for path in ("/job", "/tmp", "/dev/shm"):
    open(f"{path}/attack", "w").close()
    os.chmod(f"{path}/attack", 0o4777)
tell("own", lambda: sorted(os.listdir("/job")))
"""
#: What exists is looked at first: whose it is, and its write bits.
REFUSED = {"EROFS", "EACCES", "EPERM", "ENOENT", "EXDEV", "EISDIR", "EBUSY", "ENOTDIR", "EINVAL", "EOPNOTSUPP"}


def test_nothing_is_changed(alice: Person) -> None:
    seen = "cat /etc/* 2>/dev/null | cksum; ls -lR /etc/ssl /run /var | cksum; readlink /bin"
    before = lines(alice, seen)
    found = findings(alice, CODE)
    assert found.pop("own") == ["attack"]
    assert len(found) > 180
    assert {what: answer for what, answer in found.items() if answer not in REFUSED} == {}
    made = {what: answer for what, answer in found.items() if " in /" in what}
    assert set(made.values()) == {"EROFS"}
    assert lines(alice, seen) == before
