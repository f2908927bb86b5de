"""attnopt: which efficient attention could replace softmax in a pretrained transformer, and what it would cost."""

from typing import Any


def load(path: Any, device: str = "cpu") -> Any:
    """A student's folder as a working Hugging Face model with `generate()`; its tokenizer is `model.tokenizer`."""
    from attnopt.student.files import load_student as load_student

    return load_student(path, device)
