"""What the original study published: claims of its authors, kept as data and measured by nobody here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """What the study said of one variant, and why it differs from what is measured here.

    Attributes:
        study: the variant's name there.
        kind: the mechanism here that comes closest to it.
        loss: its training loss, first to last, on the study's own scales.
        text: how its authors judged the samples.
        differs: why the numbers cannot be compared as they are.
    """

    study: str
    kind: str
    loss: str
    text: str
    differs: str


STUDY = (
    Reported(
        "masks",
        "masks",
        "2.6113 → 0.5875 in 10 epochs (others: 2.1470 → 0.3881 in 100; 1.4750 → 0.5875)",
        "decent",
        "Its loss was KL plus cross-entropy on the training text. Here: KL alone, held out.",
    ),
    Reported(
        "Performer",
        "performer",
        "2.4290 → 0.1872 in 45 epochs (earlier: 3.1287 → 2.2994 in 50, with NaN)",
        "poor",
        "It summed over the whole sequence and so saw the tokens it predicts, with features that are not the softmax "
        "kernel's. Here: causal, positive orthogonal features.",
    ),
    Reported(
        "Performer",
        "performer_bidirectional",
        "the same runs",
        "poor",
        "The study's non-causal form, kept as a negative control: it shows what a leak does to KL.",
    ),
    Reported(
        "NSA",
        "nsa",
        "713.74 → 33.46 in 50 epochs (earlier: 331.67 → 175.68 in 5)",
        "incoherent",
        "Its KL was a sum over the batch and its targets shifted by a position; 12 blocks shared one attention module, "
        "MLPs and norms started afresh. Here: a mean per token, aligned, the teacher's own weights.",
    ),
)
