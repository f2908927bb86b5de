"""The report: typed records in, a page of answers with their evidence and limits out."""
