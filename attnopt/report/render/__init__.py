"""Tables and figures as HTML, Markdown and PNG."""
