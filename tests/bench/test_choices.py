import pytest

from cutwork import text
from cutwork.bench import choices, conv, layers, linear, models


@pytest.mark.parametrize(
    ("check", "given", "message"),
    [
        (choices.check_seconds, float("nan"), "seconds nan; give more than 0, and a finite number"),
        (choices.check_seconds, float("inf"), "seconds inf"),
        (choices.check_seconds, -1.0, "seconds -1"),
        (choices.check_threads, 0, "threads 0; give at least 1, and on this machine at most"),
        (choices.check_threads, 100_000, "threads 100000; give at least 1, and on this machine at most"),
        (choices.check_seed, 2**63, "seed 9223372036854775808; give a whole number of less than 19 digits"),
        (choices.check_seed, -(2**63), "seed -9223372036854775808"),
        (choices.check_densities, [float("nan")], "density=nan"),
        (choices.check_densities, [], "nothing is given for density; name at least one, for example 0.1"),
        (lambda given: choices.check_counts("tokens", given), [], "nothing is given for tokens"),
        (
            choices.tiles,
            "block:99999999999999999999",
            "^the tiles of 'block:[0-9x]+' are larger than any layer; give sides up to 4096",
        ),
        (choices.tiles, "block:1000000x2", "^the tiles of 'block:[0-9x]+' are larger than any layer"),
        (text.shape_of, "-5x7", "unknown shape '-5x7'"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_is_legal(check, given, message):
    with pytest.raises(ValueError, match=message):
        check(given)


def test_what_can_be_measured_is_let_through():
    choices.check_seconds(1e-300)
    choices.check_threads(1)
    choices.check_seed(2**63 - 1)
    choices.check_seed(-1)


def test_a_name_given_twice_counts_once_and_a_near_one_is_suggested():
    assert choices.choose("form", ["tile", "dense", "tile"], ("dense", "tile")) == ("tile", "dense")
    with pytest.raises(ValueError, match=r"unknown form 'til' \(did you mean 'tile'\?\); write one of dense, tile"):
        choices.choose("form", ["til"], ("dense", "tile"))


LINEAR = {
    "shapes": ["32x48"],
    "tokens": [5],
    "patterns": ["block:16"],
    "densities": [0.5],
    "precisions": ["fp32"],
    "passes": ["forward"],
    "forms": ["dense", "tile"],
}
CONV = {
    **{name: LINEAR[name] for name in LINEAR if name != "tokens"},
    "shapes": ["8@4x4"],
    "kernels": [3],
    "strides": [1],
    "batches": [2],
}
MODELS = {
    **{name: LINEAR[name] for name in ("patterns", "densities", "precisions", "passes", "forms")},
    "names": ["tiny"],
    "layers": ["all"],
    "batches": [2],
}


def linear_groups(*, shapes, tokens, **options):
    found = linear.layers(shapes=shapes, tokens=tokens)
    return layers.groups(found, linear.LINEAR_FORMS, layers.Choices(**options))


def conv_groups(*, shapes, kernels, strides, batches, **options):
    found = conv.layers(shapes=shapes, kernels=kernels, strides=strides, batches=batches)
    return layers.groups(found, conv.CONV_FORMS, layers.Choices(**options))


def model_groups(*, patterns, densities, precisions, passes, forms, **options):
    return models.groups(**options, choices=layers.Choices(patterns, densities, precisions, passes, forms))


@pytest.mark.parametrize(
    ("groups", "options", "name"),
    [
        (groups, options, name)
        for groups, options in ((linear_groups, LINEAR), (conv_groups, CONV), (model_groups, MODELS))
        for name in ("shapes", "names", "layers", "tokens", "kernels", "strides", "batches", "patterns", "densities")
        if name in options
    ],
)
def test_an_empty_list_is_refused(groups, options, name):
    with pytest.raises(ValueError, match=r"nothing is given for .*; name at least one"):
        groups(**options | {name: []})


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        (linear_groups, LINEAR | {"shapes": ["1000000000x1000000000"]}),
        (linear_groups, LINEAR | {"shapes": ["99999999999999999999x3"]}),
        (linear_groups, LINEAR | {"tokens": [10**12]}),
        (conv_groups, CONV | {"shapes": ["1000000000@1000000000x1000000000"]}),
        (conv_groups, CONV | {"kernels": [1_000_000]}),
        (conv_groups, CONV | {"batches": [10**12]}),
    ],
)
def test_layers_that_no_memory_holds_are_refused_before_they_are_built(groups, options):
    with pytest.raises(ValueError, match=r"would take at least [\d,.]+ GiB of memory, of which [\d,.]+ GiB are free"):
        groups(**options)


@pytest.mark.parametrize("change", [{"names": ["mlp:1000000000x1000000000"]}, {"batches": [10**12]}])
def test_models_that_no_memory_holds_are_refused_before_they_are_built(change):
    (group,) = model_groups(**MODELS | change)
    with pytest.raises(ValueError, match="GiB of memory"):
        group.candidates()


def test_a_stride_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match="stride 5 is wider than the image 8@4x4; give at most 4"):
        conv_groups(**CONV | {"strides": [5]})


def test_an_unknown_model_or_layer_that_is_nearly_right_is_suggested():
    (group,) = model_groups(**MODELS | {"layers": ["linear"]})
    with pytest.raises(ValueError, match=r"no layer is meant by 'linear' \(did you mean 'linears'\?\)"):
        group.candidates()
    (group,) = model_groups(**MODELS | {"names": ["vitb16"]})
    with pytest.raises(ValueError, match=r"unknown model 'vitb16' \(did you mean 'vit-b16'\?\)"):
        group.candidates()
