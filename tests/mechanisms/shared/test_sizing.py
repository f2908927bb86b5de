"""Mechanisms sized to a budget of state: within it, not a step smaller than they could be, and as the user said."""

from typing import Any

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs, Mechanism, load_mechanism, mechanism_names
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.performer import Performer
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.mechanisms.softmax import Softmax

LENGTH = 1024
GEOMETRIES = {
    (kv_heads, dim): Geometry(heads=4, kv_heads=kv_heads, head_dim=dim, hidden=4 * dim, scaling=dim**-0.5)
    for kv_heads, dim in ((4, 8), (2, 8), (1, 16), (2, 64))
}
GQA = GEOMETRIES[2, 8]
SIZEABLE = [k for k in mechanism_names() if load_mechanism(k).sizes(GQA, load_mechanism(k).Options())]


def allowed(share: float, geometry: Geometry = GQA, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> int:
    return int(share * softmax_bytes(geometry, length, dtype))


def held(kind: str, options: Any, geometry: Geometry = GQA, dtype: torch.dtype = torch.float32) -> int:
    return load_mechanism(kind)(geometry, options).state_bytes(1, LENGTH, dtype)


def sized(kind: str, share: float = 0.125, geometry: Geometry = GQA, dtype: torch.dtype = torch.float32, **given: Any):
    cls = load_mechanism(kind)
    return cls.sized(geometry, cls.Options(**given), allowed(share, geometry, dtype=dtype), LENGTH, dtype)


def test_all_with_a_bounded_state_can_be_sized() -> None:
    bounded = {k for k in mechanism_names() if load_mechanism(k).growth != "linear"} - {"none"}
    assert set(SIZEABLE) >= bounded & {"window", "masks", "performer", "hedgehog", "based", "routing"}


def test_softmax_bytes_are_those_of_the_keys_and_values_alone() -> None:
    x = Inputs(torch.randn(1, 4, 30, 8), torch.randn(1, 2, 30, 8), torch.randn(1, 2, 30, 8))
    assert softmax_bytes(GQA, 30, torch.float32) == x.k.nbytes + x.v.nbytes


@pytest.mark.parametrize("kind", SIZEABLE)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=map(str, GEOMETRIES))
@pytest.mark.parametrize(("share", "dtype"), [(0.125, torch.float32), (0.03, torch.float32), (0.25, torch.bfloat16)])
def test_it_fits_and_no_size_could_be_a_step_larger(
    kind: str, geometry: Geometry, share: float, dtype: torch.dtype
) -> None:
    options, cls = sized(kind, share, geometry, dtype), load_mechanism(kind)
    room, now = allowed(share, geometry, dtype=dtype), held(kind, options, geometry, dtype)
    assert 0.5 * room < now <= room
    for size in cls.sizes(geometry, cls.Options()):
        n = next(n for n in range(size.least, 5000) if size.options(n).items() <= dict(options).items())
        more = held(kind, cls.Options(**dict(options) | size.options(n + 1)), geometry, dtype)
        assert more > room or more == now


@pytest.mark.parametrize("kind", SIZEABLE)
def test_a_real_state_holds_what_is_allowed_at_most(kind: str) -> None:
    torch.manual_seed(0)
    cls, length = load_mechanism(kind), 160
    room = allowed(0.2, length=length)
    mechanism = cls(GQA, cls.sized(GQA, cls.Options(), room, length, torch.float32))
    x = Inputs(torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8), torch.randn(1, 2, length, 8))
    assert 0.5 * room < measured_bytes(mechanism(x)[1]) <= room


def test_a_window_is_the_budget_less_the_sinks() -> None:
    assert sized("window").window - 1 + 4 == LENGTH // 8
    assert sized("window", sinks=10).window - 1 + 10 == LENGTH // 8


@pytest.mark.parametrize("kind", ["hedgehog", "based", "routing"])
@pytest.mark.parametrize("sinks", [0, 4])
def test_a_hybrid_gives_half_to_its_window(kind: str, sinks: int) -> None:
    options = sized(kind, geometry=GEOMETRIES[2, 64], sinks=sinks)
    assert 0.4 < options.window / (LENGTH / 8) < 0.6


def test_routing_at_64_tokens_is_what_the_search_found() -> None:
    options = sized("routing", geometry=GEOMETRIES[2, 64])
    assert (options.clusters, options.members, options.picks, options.window) == (8, 8, 4, 64)


@pytest.mark.parametrize(
    ("kind", "given", "chosen"),
    [
        ("hedgehog", {"window": 10}, "feature_dim"),
        ("hedgehog", {"window": 0}, "feature_dim"),
        ("hedgehog", {"feature_dim": 20}, "window"),
        ("based", {"feature_dim": 3}, "window"),
        ("routing", {"window": 20, "clusters": 5}, "members"),
        ("routing", {"window": 20, "members": 9}, "clusters"),
        ("routing", {"clusters": 4, "members": 4}, "window"),
    ],
)
def test_what_is_given_stays_and_leaves_the_rest_to_the_others(kind: str, given: dict, chosen: str) -> None:
    options = sized(kind, **given)
    assert dict(options).items() >= given.items()
    assert held(kind, options) <= allowed(0.125)
    assert held(kind, options.model_copy(update={chosen: getattr(options, chosen) + 1})) > allowed(0.125)


def test_a_window_branch_alone_gets_it_all() -> None:
    assert sized("hedgehog", branches="window").window == LENGTH // 8
    assert sized("routing", branches="window").window == LENGTH // 8 + 1


def test_picks_that_are_given_make_at_least_as_many_clusters() -> None:
    options = sized("routing", 0.03, picks=5)
    assert options.picks == 5 <= options.clusters


def test_a_state_that_cannot_fill_the_budget_ends_the_search() -> None:
    options = sized("based", 0.5, window=4)
    assert options.feature_dim == 8


def test_all_of_softmaxs_state_makes_a_window_of_all_tokens() -> None:
    assert sized("window", 1.0, sinks=0).window == LENGTH + 1


@pytest.mark.parametrize(
    ("kind", "given"),
    [("softmax", {}), ("nsa", {}), ("linformer", {}), ("masks", {"candidates": ("last:1", "stride:8")})],
)
def test_what_keeps_every_token_is_left_as_it_is(kind: str, given: dict) -> None:
    assert sized(kind, 0.001, **given) == load_mechanism(kind).Options(**given)


@pytest.mark.parametrize(
    ("kind", "share", "given", "reason"),
    [
        ("window", 0.125, {"window": 200}, "window 200, sinks 4: 25984 bytes a layer at 1024 tokens, and 16384 are"),
        ("masks", 0.125, {"candidates": ("window:200",)}, "candidates .'window:200',., .* 16384 are allowed"),
        ("window", 0.003, {}, "window 1, sinks 4: 512 bytes a layer at 1024 tokens, and 393 are allowed"),
        ("hedgehog", 0.125, {"window": 150}, "window 150"),
        ("performer", 0.0005, {}, "features 1"),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, share: float, given: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        sized(kind, share, **given)
    assert "\n" not in str(caught.value)


def test_a_mechanism_without_sizes_is_refused_only_where_it_holds_more() -> None:
    fixed = type("Fixed", (Performer,), {"sizes": Mechanism.sizes})
    options, needed = fixed.Options(features=10), 10 * 9 * 2 * 4
    assert fixed.sized(GQA, options, needed, LENGTH, torch.float32) == options
    with pytest.raises(ValueError, match=f"{needed} bytes a layer at 1024 tokens, and {needed - 1} are allowed"):
        fixed.sized(GQA, options, needed - 1, LENGTH, torch.float32)


def test_sizing_draws_nothing_from_the_callers_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sized("performer")
    sized("hedgehog")
    assert torch.equal(torch.rand(1), expected)
    assert Softmax.sizes(GQA, Softmax.Options()) == ()
