"""Parts that several mechanisms share, and what the registry tells about them; nothing here is a mechanism."""
