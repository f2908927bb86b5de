"""The hardware that measurements depend on, named so that only another machine changes it."""

import contextlib
import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

GPU_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
RAM_STEP = 4
"""GiB. What a kernel reports lies a little below what is built in, and moves with its version."""


def machine_fingerprint() -> dict[str, Any]:
    """CPU model, cores, RAM rounded up to a multiple of 4 GiB, and the GPUs; no load, host name or versions."""
    import psutil

    ram = RAM_STEP * math.ceil(psutil.virtual_memory().total / 2**30 / RAM_STEP)
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "ram_gib": ram, "gpus": gpus()}


def gpus() -> list[str]:
    """Name and memory of every GPU that NVIDIA's driver lists; empty without one. Takes no import of torch."""
    try:
        asked = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.rpartition(",") for line in asked.stdout.splitlines() if line.strip())
    return [f"{name.strip()}, {_gib(mib)} GiB" for name, _, mib in rows]


def _gib(mib: str) -> str:
    return str(round(float(mib) / 1024)) if mib.strip().isdigit() else "unknown"


def machine_line(found: dict[str, Any]) -> str:
    """One line for a person."""
    cpu = f"{found['cpu']}, {found['cores']} cores, {found['ram_gib']} GiB"
    return "; ".join([cpu, *found["gpus"]])


def environment() -> dict[str, Any]:
    """What a number was measured on: machine, cores, memory, device and versions."""
    import psutil

    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for package in ("attnopt", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if (torch := sys.modules.get("torch")) is not None:
        found["threads"] = torch.get_num_threads()
        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return found


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
