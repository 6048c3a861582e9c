"""Identity of a process, by which a dead owner of a file is told from a living process with the same number."""

import os
import socket
from pathlib import Path


def machine() -> str:
    """Return what two processes share if their numbers can be compared: a machine's boot and a process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def start_time(pid: int) -> str | None:
    """Return the ticks from boot to the start of a process, which differ for a later one; None if it is dead."""
    try:
        # The second field, in parentheses, may hold spaces; the third is the state (Z: dead, but not yet collected).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def me() -> dict:
    """Return an identity that no other process has or had."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": machine(), "pid": pid, "start_time": start_time(pid)}
