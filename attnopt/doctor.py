"""What this machine has, in a few lines, for a user and for a bug report."""

import os

from attnopt.files import environment


def diagnose() -> str:
    import torch

    from attnopt import mechanisms
    from attnopt.device import precision, resolve
    from attnopt.ops import kernels
    from attnopt.params import TeacherParams
    from attnopt.teacher import load

    device = resolve("auto")
    model, _ = load(TeacherParams())
    offline = "yes" if os.environ.get("HF_HUB_OFFLINE") == "1" else "no"
    rows = {
        **environment(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "training precision": str(precision("auto", device)).removeprefix("torch."),
        "bundled teacher": f"{sum(p.numel() for p in model.parameters()):,} parameters",
        **{f"kernel of {operation}": name for operation, name in kernels.plan(device.type).items()},
        "mechanisms": ", ".join(mechanisms.names()),
        "offline (HF_HUB_OFFLINE)": offline,
    }
    width = max(len(name) for name in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())
