"""The student: a teacher with other attention in its layers, swapped in, built, watched and kept on disk."""
