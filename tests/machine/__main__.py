"""A small machine whose kernel has control groups of version 2, for tests that need it: qemu boots it.

    python -m tests.machine --kernel FOLDER [--user NAME] -- COMMAND…

It has the files of this machine, read-only below a layer in memory. The command runs in the unit of ``deploy/``, but
for what that starts. FOLDER holds ``boot/vmlinuz-*`` and ``lib/modules/*``: "/" where the kernel of a distribution is
installed, or what a package was unpacked to. The processor is emulated, so that it works wherever qemu does, and ten
times slower.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay")
TOOLS = ("sh", "mount", "umount", "mkdir", "insmod", "cat", "cp", "ip", "switch_root")
DEPLOYED = Path(__file__).parent.parent.parent / "deploy/shell-service.service"
CHANGES = """
[Unit]
After=
Wants=
DefaultDependencies=no
[Service]
Type=oneshot
User={user}
WorkingDirectory={folder}
ExecStart=
ExecStart={command}
ExecStopPost=+/bin/sh -c 'echo "status: $EXIT_STATUS" > /dev/ttyS0; echo o > /proc/sysrq-trigger'
Restart=no
TimeoutStartSec=infinity
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
"""


@click.command()
@click.option("--kernel", type=click.Path(path_type=Path, exists=True), default=Path("/"))
@click.option("--user", default="root", help="Whose processes the command's are.")
@click.option("--memory", default="3G")
@click.argument("command", nargs=-1, required=True)
def main(kernel: Path, user: str, memory: str, command: tuple[str, ...]) -> None:
    """Run a command in the machine; ends as the command does."""
    image = max((kernel / "boot").glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    modules = kernel / "lib/modules" / image.name.removeprefix("vmlinuz-")
    changes = CHANGES.format(user=user, folder=os.getcwd(), command=" ".join(map(_quoted, command)))
    with tempfile.NamedTemporaryFile(prefix="machine-") as archive:
        archive.write(b"".join(_archive(modules, changes)))
        archive.flush()
        status = _boot(image, archive.name, memory)
    sys.exit(status)


def _boot(image: Path, archive: str, memory: str) -> int:
    """Show what the machine prints; returns the status of its command."""
    arguments = [
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", memory),
        *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(image), "-initrd", archive, "-append", "console=ttyS0 quiet panic=-1"),
        *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
    ]
    status = 1
    with subprocess.Popen(
        ["qemu-system-x86_64", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as machine:
        assert machine.stdout
        for line in machine.stdout:
            if found := re.match(rb"status: (\d+)", line):
                status = int(found[1])
            else:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
    return status


def _archive(modules: Path, changes: str) -> Iterator[bytes]:
    """The first file system of the machine: an archive as of cpio(1), format "newc"."""
    files = {path.name: path for path in _modules(modules)}
    for folder in ("bin", "modules.d", "unit", "unit/machine.service.d"):
        yield _entry(folder, mode=0o40755)
    yield _entry("bin/busybox", Path("/bin/busybox").read_bytes())
    for tool in TOOLS:
        yield _entry(f"bin/{tool}", b"busybox", mode=0o120777)
    for name, path in files.items():
        yield _entry(f"modules.d/{name}", path.read_bytes())
    yield _entry("modules", "\n".join(f"/modules.d/{name}" for name in files).encode())
    yield _entry("init", Path(__file__).with_name("init.sh").read_bytes())
    yield _entry("unit/machine.service", DEPLOYED.read_bytes(), mode=0o100644)
    yield _entry("unit/machine.service.d/test.conf", changes.encode(), mode=0o100644)
    yield _entry("TRAILER!!!")


def _quoted(word: str) -> str:
    """A word of a command, as systemd.service(5) wants it."""
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("%", "%%"), ("$", "$$")):
        word = word.replace(character, escaped)
    return f'"{word}"'


def _modules(folder: Path) -> list[Path]:
    """Those that are needed, each after those that it needs itself."""
    files = {path.stem.replace("-", "_"): path for path in folder.rglob("*.ko")}
    found: dict[str, Path] = {}

    def add(name: str) -> None:
        needed = re.search(rb"\0depends=([^\0]*)", files[name].read_bytes())
        for other in filter(None, (needed[1] if needed else b"").decode().split(",")):
            add(other.replace("-", "_"))
        found.setdefault(name, files[name])

    for name in MODULES:
        add(name)
    return list(found.values())


def _entry(name: str, data: bytes = b"", mode: int = 0o100755) -> bytes:
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return b"".join(part + bytes(-len(part) % 4) for part in (head, data))


if __name__ == "__main__":
    main()
