"""`attnopt mechanisms`: every mechanism with its source, growth, cost and options."""

from attnopt.mechanisms import load_mechanism, mechanism_names


def mechanisms_table() -> str:
    lines = []
    for kind in mechanism_names():
        cls = load_mechanism(kind)
        summary = (cls.__doc__ or __import__(cls.__module__, fromlist=["_"]).__doc__ or "").strip().split("\n")[0]
        mark = f"  [control: {cls.control}]" if cls.control else ""
        lines += [f"{kind}{mark}", f"    {summary}", f"    {cls.source}"]
        lines.append(f"    state: {cls.growth}; work per token: {cls.cost or 'not stated'}")
        for name, field in cls.Options.model_fields.items():
            default = field.get_default(call_default_factory=True)
            lines.append(f"    {name} = {default!r}  {field.description or ''}".rstrip())
        lines.append("")
    return "\n".join(lines)
