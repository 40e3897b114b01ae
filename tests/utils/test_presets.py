"""Named settings: found, readable, and those of the paper."""

import pytest

from ssast_lobes.utils.presets import hparams_folder, load_preset, read_preset

# Gong et al., AAAI 2022: DeiT's tiny, small and base.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


@pytest.mark.parametrize("name", SIZES)
def test_model_sizes_are_those_of_the_paper(name):
    size = load_preset("model", name)
    assert (size["dim"], size["heads"]) == SIZES[name]
    assert (size["depth"], size["mlp_ratio"]) == (12, 4)


def test_micro_is_smaller_than_tiny():
    micro, tiny = load_preset("model", "micro"), load_preset("model", "tiny")
    assert micro["dim"] < tiny["dim"] and micro["depth"] < tiny["depth"]


@pytest.mark.parametrize("name", [*SIZES, "micro"])
def test_both_graphs_of_ssamba_have_the_same_mixers(name):
    ours = load_preset("model", f"ssamba_{name}")
    theirs = load_preset("model", f"ssamba_{name}_reference")
    assert (ours["blocks"], theirs["blocks"]) == ("mamba", "mamba_reference")
    assert ours["dim"] == theirs["dim"]
    assert ours["depth"] == 2 * theirs["depth"]
    if name in SIZES:
        assert (ours["dim"], ours["depth"]) == (SIZES[name][0], 24)


def test_every_numbers_fragment_is_a_dictionary():
    for kind in ("model", "features"):
        for path in (hparams_folder() / kind).glob("*.yaml"):
            numbers = load_preset(kind, path.stem)
            # Of models also the kind of blocks.
            numbers.pop("blocks", None)
            for number in numbers.values():
                # Of statistics also one for each mel bin.
                each = number if isinstance(number, list) else [number]
                assert all(isinstance(n, (int, float)) for n in each)


def test_paper_ratio_hides_400_of_512():
    assert read_preset("objective", "mspm")["mask_ratio"] * 512 == 400


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="huge.*base.*micro.*small.*tiny"):
        load_preset("model", "huge")
