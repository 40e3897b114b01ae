"""Decoders: published sizes, positions, and clips that keep to themselves."""

import pytest
import torch

from ssast_lobes import SpectrogramEncoder
from ssast_lobes.models.decoders import ConvDecoder, TransformerDecoder
from ssast_lobes.models.encoder import EncoderOutput
from ssast_lobes.models.patches import Grid, sincos_positions
from ssast_lobes.objectives import load_objective
from ssast_lobes.objectives.base import gather_tokens, split_tokens

DIM = 32


def tiny(cls, **arguments):
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(dim=DIM, depth=4, heads=2)
    return cls(encoder, **arguments).eval()


def decoder():
    return tiny(TransformerDecoder, width=1.0, depth=0.5, head_size=16)


def conv_decoder(kernel=3):
    return tiny(ConvDecoder, depth=0.5, kernel=kernel, groups=8)


def scene(n_time=(6, 4), n_freq=3):
    """What an encoder gives of visible tokens, and which these are."""
    n_time, draw = torch.tensor(n_time), torch.Generator().manual_seed(0)
    is_token = Grid(16 * n_freq, (16, 16)).is_token(n_time, int(n_time.max()))
    mask = torch.rand(is_token.shape, generator=draw) < 0.5
    split = split_tokens(mask.unflatten(1, (n_freq, -1)), is_token)
    x = torch.randn(*is_token.shape, DIM, generator=draw)
    classes = torch.randn(len(n_time), 2, DIM, generator=draw)
    tokens = gather_tokens(x, split.keep[0]) * split.keep[1][:, :, None]
    return EncoderOutput(tokens, split.keep[1], classes, None), split, x


@pytest.mark.parametrize(
    "name, base, tiny",
    [
        ("maskspec", (512, 8, 16), (128, 8, 4)),
        ("audiomae", (512, 8, 16), (128, 8, 4)),
        ("m2d", (512, 8, 16), (128, 8, 4)),
        ("mae_ast", (768, 2, 12), (192, 2, 3)),
    ],
)
def test_transformer_decoders_have_the_published_sizes(name, base, tiny):
    for size, (dim, depth, heads) in (("base", base), ("tiny", tiny)):
        with torch.device("meta"):
            encoder = SpectrogramEncoder.from_size(size)
            built = load_objective(name)(encoder).decoder
        assert (built.dim, len(built.blocks)) == (dim, depth)
        assert built.blocks[0].attn.heads == heads


def test_the_convolutional_decoder_has_the_published_size():
    with torch.device("meta"):
        encoder = SpectrogramEncoder.from_size("base")
        layers = load_objective("eat")(encoder).decoder.layers
    assert len(layers) == 6
    assert {layer.kernel_size for layer in layers} == {(3, 3)}
    assert {(layer.out_channels, layer.groups) for layer in layers} == {
        (768, 16)
    }


@torch.no_grad()
def test_a_decoded_clip_does_not_depend_on_its_neighbors():
    encoded, split, x = scene()
    together = decoder()(encoded, split, n_freq=3)
    conv_together = conv_decoder()(x, split.is_token, n_freq=3)
    own = split.is_token[1]
    alone = split_tokens(
        (~split.visible & split.is_token)[1:, own].unflatten(1, (3, -1)),
        torch.ones(1, 12).bool(),
    )
    tokens = (
        gather_tokens(x[1:, own], alone.keep[0]) * alone.keep[1][:, :, None]
    )
    alone_encoded = encoded._replace(
        tokens=tokens, class_tokens=encoded.class_tokens[1:]
    )
    apart = decoder()(alone_encoded, alone, n_freq=3)
    assert (together[1, own] - apart[0]).abs().max() < 1e-5
    conv_apart = conv_decoder()(x[1:, own], alone.is_token, n_freq=3)
    assert (conv_together[1, own] - conv_apart[0]).abs().max() < 1e-5
    assert (conv_together[1, ~own] == 0).all()


@torch.no_grad()
def test_mask_tokens_differ_by_their_positions_only():
    encoded, split, _ = scene((6,))
    nothing = split_tokens(torch.ones(1, 3, 6).bool(), split.is_token)
    nowhere = encoded._replace(tokens=torch.zeros(1, 18, DIM))
    built = decoder()
    # Without mixing, what stands at a token is mask token and position.
    built.blocks = torch.nn.ModuleList()
    built.norm = torch.nn.Identity()
    x = built(nowhere, nothing, n_freq=3)
    expected = built.mask_embedding + sincos_positions(3, 6, built.dim)
    assert torch.allclose(x.view(3, 6, -1), expected)


@torch.no_grad()
def test_class_tokens_and_visible_tokens_are_heard_everywhere():
    encoded, split, _ = scene((6,))
    built = decoder()
    before = built(encoded, split, n_freq=3)
    for name in ("class_tokens", "tokens"):
        louder = encoded._replace(**{name: 3 * getattr(encoded, name)})
        moved = (built(louder, split, n_freq=3) - before).abs().amax(2)
        assert (moved > 1e-6).all(), name


@torch.no_grad()
def test_convolutions_reach_as_far_as_their_kernels():
    built = conv_decoder()
    x, is_token = torch.randn(1, 45, DIM), torch.ones(1, 45).bool()
    changed = x.clone()
    changed[0, 22] += 1
    moved = built(changed, is_token, 5) != built(x, is_token, 5)
    moved = moved.any(2).view(5, 9)
    # Two layers of 3 x 3 around row 2, column 4.
    expected = torch.zeros(5, 9).bool()
    expected[0:5, 2:7] = True
    assert torch.equal(moved, expected)


def test_sizes_never_round_to_nothing():
    small = tiny(TransformerDecoder, width=0.1, depth=0.01, head_size=32)
    assert (small.dim, len(small.blocks)) == (32, 1)
    assert len(tiny(ConvDecoder, depth=0.01, kernel=3, groups=4).layers) == 1
