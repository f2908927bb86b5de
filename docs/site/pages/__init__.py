"""The pages of the site that are made from the code, and the files of the repository that pages lead to."""
