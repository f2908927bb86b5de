"""What a table, a figure and a number as text are; nothing here knows the study."""
