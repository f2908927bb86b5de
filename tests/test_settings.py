"""params.yaml: what is right loads, what is wrong is named in one line."""

import re

import pytest
from conftest import ROOT, Workspace

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.mechanisms import MechanismOptions
from attnopt.mechanisms.softmax import Softmax

WRONG = {
    "misspelt section": ({"distil": {"steps": 3}}, "unknown key 'distil' (did you mean 'distill'?)"),
    "misspelt key": ({"distill": {"stepz": 3}}, "unknown key 'distill.stepz' (did you mean 'steps'?)"),
    "misspelt option": ({"none": {"featurs": 3}}, "unknown key 'none.featurs'"),
    "misspelt override": ({"none": {"distill": {"lrr": 1}}}, "unknown key 'none.distill.lrr' (did you mean 'lr'?)"),
    "wrong type": ({"distill": {"batch": "many"}}, "'distill.batch' is 'many'"),
    "out of range": ({"distill": {"lr": -1.0}}, "'distill.lr' is -1.0: input should be greater than 0"),
    "not a choice": ({"distill": {"kl": "sideways"}}, "'forward', 'reverse', 'jsd' or 'none'"),
    "not a number": ({"distill": {"lr": float("nan")}}, "'distill.lr' is nan"),
    "no variants": ({"variants": {}}, "variants: Dictionary should have at least 1 item"),
    "unknown mechanism": ({"variants": {"none": "nonne"}}, "variants.none: unknown mechanism 'nonne' (did you mean none?)"),
    "no section": ({"variants": {"extra": "none"}}, "variant 'extra' has no section; add `extra: {}`"),
    "section's name": ({"variants": {"bench": "none"}}, "'bench' is the name of a section"),
    "no path": ({"corpus": {"path": None}}, "source files needs the key 'path'"),
    "a teacher without end": ({"corpus": {"source": "teacher"}}, "source teacher needs the key 'max_tokens'"),
    "less than a block": ({"corpus": {"source": "teacher", "max_tokens": 9}}, "max_tokens 9 does not fill one block of 32"),
    "no held-out path": ({"corpus": {"source": "teacher", "held_out": "files", "path": None, "max_tokens": 99}}, "held_out files needs the key 'path'"),
    "two budgets": ({"distill": {"epochs": 1.0}}, "set either steps or epochs"),
    "reverse KL of a part": ({"teacher": {"logits": "topk"}, "distill": {"kl": "reverse"}}, "none: distill.kl reverse needs whole distributions, and teacher.logits topk keeps a part"),
    "JSD of a part": ({"teacher": {"logits": "sampled"}, "none": {"distill": {"kl": "jsd"}}}, "none: distill.kl jsd needs whole distributions, and teacher.logits sampled keeps"),
    "a temperature of a part": ({"teacher": {"logits": "sampled"}, "distill": {"temperature": 2.0}}, "distill.temperature 2.0 needs whole distributions, and teacher.logits sampled"),
    "long blocks that are short": ({"corpus": {"long_block": 32}}, "long_block 32 is not above block 32"),
    "long blocks of a teacher": ({"corpus": {"source": "teacher", "max_tokens": 99, "long_block": 64}}, "long_block: source teacher samples blocks of one length"),
    "a share of no long blocks": ({"none": {"distill": {"long_share": 0.2}}}, "none: distill.long_share 0.2 needs corpus.long_block"),
    "a share above one": ({"teacher": {"shift": 1.5}}, "'teacher.shift' is 1.5"),
    "more than softmax": ({"state": {"share": 1.5}}, "'state.share' is 1.5: input should be less than or equal to 1"),
    "a state of no length": ({"state": {"length": 0}}, "'state.length' is 0: input should be greater than or equal to 1"),
    "a budget's misspelt key": ({"state": {"shar": 0.1}}, "unknown key 'state.shar' (did you mean 'share'?)"),
    "a variant's own budget": ({"none": {"state": {"share": 0}}}, "'none.state.share' is 0: input should be greater than 0"),
    "a mix of no layers": ({"mixes": {"mix": {}}}, "'mixes.mix.layers' is missing"),
    "a mix of an unknown variant": ({"mixes": {"mix": {"layers": {1: "nome"}}}}, "mixes.mix.layers.1: unknown variant 'nome' (did you mean 'none'?)"),
    "a layer below the first": ({"mixes": {"mix": {"layers": {-1: "none"}}}}, "mixes.mix.layers.-1"),
    "a mix's misspelt key": ({"mixes": {"mix": {"layers": {1: "none"}, "layer": 1}}}, "unknown key 'mixes.mix.layer' (did you mean 'layers'?)"),
    "a mix's own transfer": ({"mixes": {"mix": {"layers": {1: "none"}, "transfer": {"steps": 1}}}}, "unknown key 'mixes.mix.transfer'"),
    "a mix's misspelt override": ({"mixes": {"mix": {"layers": {1: "none"}, "distill": {"lrr": 1}}}}, "unknown key 'mixes.mix.distill.lrr' (did you mean 'lr'?)"),
    "a mix named as a variant": ({"mixes": {"none": {"layers": {1: "none"}}}}, "mixes: 'none' is the name of a variant"),
    "a list for a section": ({"none": [1]}, "none: must be a mapping"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_that_names_the_key(workspace: Workspace, case: str) -> None:
    changes, expected = WRONG[case]
    workspace.set(**changes)
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        params.load_settings()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"), [("a: [", "not readable YAML"), ("- 1\n", "must be a mapping"), ("", "must be")]
)
def test_a_file_that_is_no_mapping_is_refused(workspace: Workspace, text: str, expected: str) -> None:
    workspace.params.write_text(text)
    with pytest.raises(UserError, match=expected):
        params.load_settings()


def test_a_missing_file_says_where_to_run(workspace: Workspace) -> None:
    workspace.params.unlink()
    with pytest.raises(UserError, match="run attnopt in the project's folder"):
        params.load_settings()


def test_an_unknown_variant_lists_the_known(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="unknown variant 'perfomer'; known: softmax, none"):
        params.load_settings().variant("perfomer")


def test_a_mix_has_the_common_sections_but_for_transfer_and_is_a_student(workspace: Workspace) -> None:
    workspace.set(transfer={"steps": 9}, mixes={"mix": {"layers": {0: "none"}, "distill": {"steps": 3}}})
    settings = params.load_settings()
    mix = settings.mix("mix")
    assert (mix.is_mix, mix.transfer.steps, mix.distill.steps, mix.distill.batch) == (True, 0, 3, 4)
    assert settings.students == {"softmax": "softmax", "none": "none", "mix": "mixed"}
    with pytest.raises(UserError, match=r"unknown mix 'mx' \(did you mean 'mix'\?\); known: mix"):
        settings.mix("mx")


def test_a_variant_overrides_single_keys_of_the_budget(workspace: Workspace) -> None:
    workspace.set(none={"distill": {"epochs": 2.0}, "layers": [1]})
    variant = params.load_settings().variant("none")
    assert (variant.distill.epochs, variant.distill.steps, variant.distill.batch) == (2.0, None, 4)
    assert variant.layers == [1]


@pytest.mark.parametrize("key", [*params.OF_EVERY_VARIANT, *params.SHARED])
def test_an_option_named_like_a_key_of_every_section_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Else the section's own key would take the value away from a user's mechanism, without a word."""
    options = type("Options", (MechanismOptions,), {key: 1, "__annotations__": {key: int}})
    mine = type("Mine", (Softmax,), {"kind": "mine", "Options": options})
    monkeypatch.setattr("attnopt.mechanisms.load_mechanism", lambda kind: mine)
    with pytest.raises(UserError, match=f"mechanism 'mine' has an option '{key}', which is a key of every") as caught:
        params.load_settings()
    assert "\n" not in str(caught.value)


def test_a_variant_is_free_of_the_budget_or_has_its_own(workspace: Workspace) -> None:
    assert params.load_settings().variant("none").state.share is None
    workspace.set(state={"share": 0.125, "length": 512}, none={"state": {"share": None}})
    settings = params.load_settings()
    assert [(v.state.share, v.state.length) for v in map(settings.variant, ("softmax", "none"))] == [
        (0.125, 512),
        (None, 512),
    ]
    workspace.set(none={"state": {"share": 0.5}})
    assert params.load_settings().variant("none").swap.state.share == 0.5


def test_numbers_are_read_as_yaml_1_2_writes_them(workspace: Workspace) -> None:
    workspace.params.write_text(workspace.params.read_text().replace("steps: 12", "steps: 12\n  lr: 1e-05"))
    assert params.load_settings().distill.lr == 1e-5


def test_the_default_study_is_valid_as_it_stands() -> None:
    """The committed params.yaml is this very file; the one that lies in the project's folder is the user's."""
    assert params.load_settings(ROOT / "studies/mini.yaml").variants
