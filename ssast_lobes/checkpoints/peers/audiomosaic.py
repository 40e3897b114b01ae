"""AudioMosaic: https://github.com/HanxunH/AudioMosaic (67a86a8)."""

from torch import nn

from ssast_lobes.checkpoints.format import WeightsError
from ssast_lobes.checkpoints.peers.family import HEAD, VIT, Family


class AudioMosaic(Family):
    """A transformer with norms before the first block, and none after the last.

    The clip vector is the mean of all tokens, class token included. The
    position table was initialized from AudioMAE's table, with swapped axes. Row
    n belongs to token n.
    """

    name = "audiomosaic"
    title = "AudioMosaic"
    paper = "AudioMosaic, ICML 2026"
    license = "MIT"
    license_id = "mit"
    source = "https://huggingface.co/hanxunh"
    marks = ("norm_pre.weight", "patch_embed.norm.weight")
    prefixes = ("module.", "_orig_mod.")
    names = {
        **VIT,
        "patch_embed.norm.": "encoder.patch_norm.",
        "norm_pre.": "encoder.first_norm.",
        **HEAD,
    }
    left_out = ("projector.",)
    encoder = {
        "n_class_tokens": 1,
        "crop": "start",
        "norms": ["patches", "first"],
    }
    pooling = {"pooling": "tokens", "layers": "last"}

    def at_length(self, weights, frames):
        """Resize the table as the official fine-tuning does.

        The official code swaps bands and steps. It reads the rows of the table
        as a grid (rows / steps, steps), and resizes this grid to (8, steps).
        """
        table = weights.state["encoder.positions.table"]
        n_freq, n_time = table.shape[0], frames // 16
        rows = table.transpose(0, 1).flatten(0, 1)
        if n_time * n_freq == len(rows):
            return
        if len(rows) % n_time:
            raise WeightsError(
                f"{len(rows)} positions do not form a grid of {n_time} steps: "
                "choose another --pad-frames"
            )
        image = rows.unflatten(0, (-1, n_time)).permute(2, 0, 1)[None]
        image = nn.functional.interpolate(
            image, (n_freq, n_time), mode="bilinear", align_corners=False
        )
        rows = image[0].permute(1, 2, 0).reshape(n_time, n_freq, -1)
        weights.state["encoder.positions.table"] = rows.transpose(
            0, 1
        ).contiguous()
        encoder = weights.config["encoder"]
        encoder.update(table=[n_freq, n_time], table_frames=frames)
        weights.report.append(
            f"positions resized to {n_time} steps, as the official code does"
        )
