"""What this machine has, in a few lines, for a user and for a bug report."""

import os

from attnopt.core.machine import environment


def diagnose() -> str:
    import torch

    from attnopt import mechanisms
    from attnopt.core.device import resolve_device, resolve_precision
    from attnopt.ops import dispatch as kernels
    from attnopt.teacher.model import load_teacher
    from attnopt.teacher.params import TeacherParams

    device = resolve_device("auto")
    model, _ = load_teacher(TeacherParams())
    offline = "yes" if os.environ.get("HF_HUB_OFFLINE") == "1" else "no"
    rows = {
        **environment(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "training precision": str(resolve_precision("auto", device)).removeprefix("torch."),
        "bundled teacher": f"{sum(p.numel() for p in model.parameters()):,} parameters",
        **{f"kernel of {operation}": name for operation, name in kernels.plan(device.type).items()},
        "mechanisms": ", ".join(mechanisms.mechanism_names()),
        "offline (HF_HUB_OFFLINE)": offline,
    }
    width = max(len(name) for name in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())
