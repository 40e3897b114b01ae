"""The base class of the ATST objectives: BYOL's heads and teacher, and mixing.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020: a student predicts a
teacher's vectors of another view. The teacher is the student's moving average.
"""

from ssast_lobes.models.ema_teacher import EMATeacher
from ssast_lobes.objectives.base import Objective
from ssast_lobes.objectives.projections import BatchNormMLP, sizes_of
from ssast_lobes.objectives.views import LogMixup
from ssast_lobes.utils.checks import real, reals
from ssast_lobes.utils.schedules import WarmupCosine


class BYOL(Objective):
    """Base class of ATST-Clip and ATST-Frame.

    Arguments
    ---------
    encoder : SpectrogramEncoder
        The encoder to train.
    masker : Masker or dict, optional
        Masker of an objective that masks tokens; see `Objective`.
    hidden : float
        Hidden size of projector and predictor, as a multiple of the encoder's
        token size D.
    out : float
        Size of the projections, as a multiple of D.
    momentum : tuple of float
        Momentum of the teacher at the first and the last step. It follows a
        cosine in between.
    mixup : float
        Greatest weight of another clip in a view.
    memory : int
        Number of clips to remember for mixing, each as long as the encoder's
        position table. Checkpoints contain the remembered clips.
    """

    training_only = ("teacher", "mixup")

    def __init__(
        self, encoder, masker=None, *, hidden, out, momentum, mixup, memory
    ):
        super().__init__(encoder, masker)
        real("hidden", hidden, 0, inside=True)
        real("out", out, 0, inside=True)
        reals("momentum", momentum, 0, 1)
        self.hidden = hidden
        self.out = out
        self.momentum = WarmupCosine(*momentum)
        self.mixup = LogMixup(
            mixup, memory, encoder.table_frames, encoder.grid.n_mels
        )
        between, after = sizes_of(encoder.dim, [hidden, out])
        self.projector = BatchNormMLP(encoder.dim, between, after)
        self.predictor = BatchNormMLP(after, between, after)
        self.teacher = EMATeacher(
            batch_statistics=True,
            encoder=self.encoder,
            projector=self.projector,
        )

    @property
    def config(self):
        """The arguments, without the encoder, that rebuild this."""
        return {
            **super().config,
            "hidden": self.hidden,
            "out": self.out,
            "momentum": [self.momentum.start, self.momentum.end],
            "mixup": self.mixup.ratio,
            "memory": len(self.mixup.clips),
        }

    def after_step(self, step, total_steps):
        """Update the teacher; see `Objective.after_step`."""
        self.teacher.update(self, self.momentum(step, total_steps))
