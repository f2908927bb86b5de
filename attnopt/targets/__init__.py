"""What is kept of the teacher's outputs, and what a loss gets of them."""
