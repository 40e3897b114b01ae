"""ASiT: reconstruct pixels, and distill patches and clips.

Atito et al., "ASiT: Local-Global Audio Spectrogram vIsion Transformer for Event
Classification", TASLP 2024. The student sees crops with corrupted groups of
pixels; the teacher sees clean crops. The student restores the corrupted pixels.
It also predicts which prototypes the teacher assigns to each patch in the same
view, and to the whole clip in the other view.
"""

import torch

from ssast_lobes.models.ema_teacher import EMATeacher
from ssast_lobes.objectives.base import (
    Objective,
    ObjectiveOutput,
    clip_mean,
    projection_std,
    require_class_tokens,
)
from ssast_lobes.objectives.corruption import GroupCorruption
from ssast_lobes.objectives.projections import (
    Center,
    Prototypes,
    gelu_mlp,
    prototype_cross_entropy,
    sizes_of,
    swap_views,
)
from ssast_lobes.objectives.views import RandomCrop
from ssast_lobes.utils.checks import real, reals, whole
from ssast_lobes.utils.schedules import Linear, WarmupCosine


class ASiT(Objective):
    """Restore corrupted pixels, with global and local distillation.

    The published numbers are in ``hparams/objective/asit.yaml``; see
    `load_objective`. The mean of the encoder's class tokens replaces the
    paper's single class token. In evaluation nothing is pasted from other
    clips, so that the loss depends on the clip alone.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train.
    crop : float
        Length of a view, as a fraction of the clip.
    drop_area, paste_area, paste_probability, block, align
        See `GroupCorruption`.
    projector : list of float
        Sizes of the projector's hidden layers, as multiples of the encoder's
        token size D.
    projection : int
        Size of the projections, independent of D. It determines how much the
        cosines to the prototypes differ, and so which temperatures fit.
    class_prototypes, patch_prototypes : float
        Number of prototypes, as a multiple of D.
    decoder : list of float
        Sizes of the decoder's hidden layers, as multiples of D. Its output
        layer returns the pixels.
    student_temperature : float
        Temperature of the student's softmax.
    teacher_temperature : tuple of float
        Temperature of the teacher's softmax at the first step, and after
        the warm-up.
    temperature_warmup : float
        Fraction of the training in which the teacher's temperature changes
        linearly.
    center_momentum : float
        See `Center`.
    momentum : tuple of float
        Momentum of the teacher at the first and the last step. It follows a
        cosine in between.
    class_weight, patch_weight, reconstruction_weight : float
        Weights of the three losses.

    Raises
    ------
    ValueError
        If the encoder has no class tokens, or an argument is out of range.

    Example
    -------
    >>> from ssast_lobes import SpectrogramEncoder
    >>> from ssast_lobes.objectives import load_objective
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> objective = load_objective("asit")(encoder)
    >>> output = objective(torch.randn(2, 128, 128), torch.tensor([128, 90]))
    >>> sorted(output.logs)
    ['class_loss', 'l1', 'patch_loss', 'projection_std']
    """

    paper = (
        "reconstruction, and self-distillation of clips and patches (Atito "
        'et al., "ASiT: Local-Global Audio Spectrogram vIsion Transformer '
        'for Event Classification", TASLP 2024)'
    )
    training_only = ("teacher", "teacher_temperature")

    def __init__(
        self,
        encoder,
        *,
        crop,
        drop_area,
        paste_area,
        paste_probability,
        block,
        align,
        projector,
        projection,
        class_prototypes,
        patch_prototypes,
        decoder,
        student_temperature,
        teacher_temperature,
        temperature_warmup,
        center_momentum,
        momentum,
        class_weight,
        patch_weight,
        reconstruction_weight,
    ):
        require_class_tokens(encoder)
        super().__init__(encoder)
        for name, weight in (
            ("class_weight", class_weight),
            ("patch_weight", patch_weight),
            ("reconstruction_weight", reconstruction_weight),
        ):
            real(name, weight, 0)
        reals("projector", projector, 0, count=None)
        reals("decoder", decoder, 0, count=None)
        whole("projection", projection)
        real("class_prototypes", class_prototypes, 0, inside=True)
        real("patch_prototypes", patch_prototypes, 0, inside=True)
        real("student_temperature", student_temperature, 0, inside=True)
        reals("teacher_temperature", teacher_temperature, 0)
        real("temperature_warmup", temperature_warmup, 0, 1)
        real("center_momentum", center_momentum, 0, 1)
        reals("momentum", momentum, 0, 1)
        self.crop = RandomCrop(crop)
        self.corrupt = GroupCorruption(
            drop_area, paste_area, paste_probability, block, align
        )
        self._config = {
            "crop": crop,
            "drop_area": list(drop_area),
            "paste_area": paste_area,
            "paste_probability": paste_probability,
            "block": block,
            "align": list(align),
            "projector": list(projector),
            "projection": projection,
            "class_prototypes": class_prototypes,
            "patch_prototypes": patch_prototypes,
            "decoder": list(decoder),
            "student_temperature": student_temperature,
            "teacher_temperature": list(teacher_temperature),
            "temperature_warmup": temperature_warmup,
            "center_momentum": center_momentum,
            "momentum": list(momentum),
            "class_weight": class_weight,
            "patch_weight": patch_weight,
            "reconstruction_weight": reconstruction_weight,
        }
        dim, pixels = encoder.dim, encoder.grid.patch_size
        n_class, n_patch = sizes_of(dim, [class_prototypes, patch_prototypes])
        self.projector = gelu_mlp([dim, *sizes_of(dim, projector), projection])
        self.class_prototypes = Prototypes(projection, n_class)
        self.patch_prototypes = Prototypes(projection, n_patch)
        self.class_center = Center(n_class, center_momentum)
        self.patch_center = Center(n_patch, center_momentum)
        # The paper uses a transposed convolution. On patches that do not
        # overlap, this is a linear layer.
        self.decoder = gelu_mlp([dim, *sizes_of(dim, decoder), pixels])
        self.teacher = EMATeacher(
            encoder=self.encoder,
            projector=self.projector,
            class_prototypes=self.class_prototypes,
            patch_prototypes=self.patch_prototypes,
        )
        self.momentum = WarmupCosine(*momentum)
        self.temperature = Linear(
            *teacher_temperature, duration=float(temperature_warmup)
        )
        # This is a buffer, so that a resumed run has it before its first step.
        self.register_buffer(
            "teacher_temperature", torch.tensor(float(teacher_temperature[0]))
        )

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return dict(self._config)

    @property
    def reconstructs(self):
        """Return True, as the decoder predicts pixels."""
        return True

    def forward(
        self, feats, n_frames, mask=None, generator=None, clip_keys=None
    ):
        """Return the loss of a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Normalized log-mel (B, T, n_mels).
        n_frames : torch.Tensor
            Valid frames (B,) int64.
        mask : None
            Not used: pixels are corrupted, tokens are not masked.
        generator, clip_keys
            Source of the draws; see `Objective.random_source`.

        Returns
        -------
        ObjectiveOutput
            Logs: the losses ``class_loss``, ``patch_loss`` and ``l1``, and
            ``projection_std``, which falls towards 0 in a collapse.
        """
        rand = self.random_source(feats, generator, clip_keys)
        crops = [self.crop(feats, n_frames, rand) for _ in range(2)]
        spoilt = [self.corrupt(*c, rand, self.training) for c in crops]
        clean, counts = (torch.cat(part) for part in zip(*crops, strict=True))
        corrupted, hidden = (
            torch.cat(part) for part in zip(*spoilt, strict=True)
        )
        encoded = self.encoder(corrupted, counts)
        l1 = self._l1(encoded.tokens, clean, hidden)
        class_loss, patch_loss, std = self._distill(encoded, clean, counts)
        losses = {"class_loss": class_loss, "patch_loss": patch_loss, "l1": l1}
        loss = (
            self._config["class_weight"] * class_loss
            + self._config["patch_weight"] * patch_loss
            + self._config["reconstruction_weight"] * l1
        )
        logs = {name: value.detach() for name, value in losses.items()}
        return ObjectiveOutput(loss, {**logs, "projection_std": std})

    def _l1(self, tokens, clean, hidden):
        """Return the mean absolute error at the corrupted pixels."""
        grid = self.encoder.grid
        error = self.decoder(tokens).float() - grid.unfold(clean.detach())
        weight = grid.unfold(hidden.float())
        return clip_mean(error.abs().flatten(1), weight.flatten(1))

    def _distill(self, encoded, clean, counts):
        """Return the losses of clips and patches, and `projection_std`."""
        temperatures = (
            self._config["student_temperature"],
            self.teacher_temperature,
        )
        weight = encoded.is_token.float()
        class_logits, patch_logits, projected = self._logits(self, encoded)
        with torch.no_grad():
            target = self.teacher.encoder(clean, counts)
            class_raw, patch_raw, _ = self._logits(self.teacher, target)
            within = (weight / weight.sum(1, keepdim=True))[:, :, None]
            self.class_center.update(class_raw.mean(0))
            self.patch_center.update((patch_raw * within).sum(1).mean(0))
            class_goal = swap_views(self.class_center(class_raw))
            patch_goal = self.patch_center(patch_raw)
        class_loss = prototype_cross_entropy(
            class_logits, class_goal, temperatures
        )
        patch_loss = prototype_cross_entropy(
            patch_logits, patch_goal, temperatures
        )
        std = projection_std(
            projected[None], projected.new_ones(1, len(projected))
        )
        return class_loss.mean(), clip_mean(patch_loss, weight), std

    @staticmethod
    def _logits(network, encoded):
        """Return the logits of clips (2B, ..) and patches (2B, N, ..).

        The third result is the projections of the clips.
        """
        projected = network.projector(encoded.clip("class"))
        patches = network.projector(encoded.tokens)
        return (
            network.class_prototypes(projected),
            network.patch_prototypes(patches),
            projected,
        )

    def after_step(self, step, total_steps):
        """Update teacher and temperature; see `Objective.after_step`."""
        self.teacher.update(self, self.momentum(step, total_steps))
        self.teacher_temperature.fill_(self.temperature(step, total_steps))

    def picture(self, feats, n_frames, clip_keys):
        """Return the corrupted pixels of clips, and their reconstruction.

        See `Objective.picture`. Blocks are dropped here, never pasted.
        """
        rand = self.random_source(feats, clip_keys=clip_keys)
        corrupted, hidden = self.corrupt(feats, n_frames, rand)
        encoded = self.encoder(corrupted, n_frames)
        patches = self.decoder(encoded.tokens).float()
        filled = self.encoder.grid.fold(patches, feats.shape[1])
        return hidden, torch.where(hidden, filled, feats)
