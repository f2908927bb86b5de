"""The page of the command line, from the parser."""

from attnopt.cli import app


def page() -> str:
    """Markdown: every subcommand of `attnopt` with its arguments and options."""
    import typer
    from typer.cli import get_docs_for_click

    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="attnopt", title="Commands")
    return text
