"""The conformance suite: what every mechanism must hold to, checked on any class that follows the contract.

>>> from attnopt import conformance, mechanisms
>>> results = conformance.check(mechanisms.load_mechanism("softmax"))
"""

from attnopt.conformance.causal import leak
from attnopt.conformance.suite import CHECKS, Result, check, check_target, conform_table, resolve

__all__ = ["CHECKS", "Result", "check", "check_target", "conform_table", "leak", "resolve"]
