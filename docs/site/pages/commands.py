"""The page of the command line, from the parser."""

import re

from attnopt.cli import app


def page() -> str:
    """Markdown: every subcommand of `attnopt` with its arguments and options."""
    import typer
    from typer.cli import get_docs_for_click

    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="attnopt", title="Commands")
    text = re.sub(r"\*\*Commands\*\*:\n.*?(?=^## )", "", text, count=1, flags=re.DOTALL | re.MULTILINE)
    return text.replace("* `--help`: Show this message and exit.\n", "").replace("**Options**:\n\n\n", "")
