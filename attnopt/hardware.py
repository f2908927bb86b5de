"""The hardware that measurements depend on, named so that only another machine changes it."""

import math
import os
import subprocess
from typing import Any

from attnopt.files import cpu_name

GPU_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
RAM_STEP = 4
"""GiB. What a kernel reports lies a little below what is built in, and moves with its version."""


def fingerprint() -> dict[str, Any]:
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


def phrase(found: dict[str, Any]) -> str:
    """One line for a person."""
    cpu = f"{found['cpu']}, {found['cores']} cores, {found['ram_gib']} GiB"
    return "; ".join([cpu, *found["gpus"]])
