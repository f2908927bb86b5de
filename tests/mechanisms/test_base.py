"""The examples in the contract's docstrings run, and the mechanism among them is a whole one."""

import doctest

from attnopt import conformance
from attnopt.mechanisms import base
from attnopt.mechanisms.shared import inputs


def test_examples_run_and_the_example_of_a_mechanism_passes_the_suite() -> None:
    runner = doctest.DocTestRunner()
    examples = {test.name: test for m in (base, inputs) for test in doctest.DocTestFinder().find(m) if test.examples}
    assert set(examples) == {"attnopt.mechanisms.shared.inputs.Inputs", "attnopt.mechanisms.base.Mechanism"}
    for example in examples.values():
        runner.run(example, clear_globs=False)
    assert runner.failures == 0
    results = conformance.check(examples["attnopt.mechanisms.base.Mechanism"].globs["RunningMean"])
    assert [r for r in results if r.passed is False] == []
