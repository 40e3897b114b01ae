"""The teacher: the exponential moving average of the student."""

import copy

import torch
from torch import nn

from ssast_lobes.utils.distributed import SharedBatchNorm


class EMATeacher(nn.Module):
    """Exponential moving average of modules, as in BYOL, DINO and data2vec.

    It contains a copy of each module under the same name. The copies have their
    own buffers, no gradients and no stochastic depth. They stay in evaluation
    mode, whatever the mode of the objective.

    Arguments
    ---------
    batch_statistics : bool
        Whether batch norms of the copies use the statistics of the batch in
        training, as ATST's teacher does.
    **students : torch.nn.Module
        Modules to average, by name.

    Example
    -------
    >>> owner = nn.Module()
    >>> owner.projector = nn.Linear(1, 1, bias=False)
    >>> teacher = EMATeacher(projector=owner.projector)
    >>> owner.projector.weight.data += 1
    >>> before = teacher.projector.weight.item()
    >>> teacher.update(owner, momentum=0.75)
    >>> round(teacher.projector.weight.item() - before, 4)
    0.25
    """

    def __init__(self, batch_statistics=False, **students):
        super().__init__()
        self.batch_statistics = batch_statistics
        for name, student in students.items():
            self.add_module(name, _copy(student))
        self.train()

    def train(self, mode=True):
        """Keep evaluation mode, except for batch norms.

        Arguments
        ---------
        mode : bool
            Mode of the batch norms if `batch_statistics` is true.

        Returns
        -------
        EMATeacher
        """
        super().train(False)
        if self.batch_statistics:
            for module in self.modules():
                if isinstance(module, SharedBatchNorm):
                    module.train(mode)
        return self

    @torch.no_grad()
    def update(self, owner, momentum):
        """Add ``(1 - momentum) * (student - copy)`` to each parameter.

        Arguments
        ---------
        owner : torch.nn.Module
            Module that contains the students, under the names of the copies.
        momentum : float
            1 keeps the copies, 0 replaces them.
        """
        own, goal = self._pairs(owner)
        torch._foreach_lerp_(own, goal, 1.0 - momentum)

    def restart(self, owner):
        """Copy the students again, as in the constructor.

        Arguments
        ---------
        owner : torch.nn.Module
            See `update`.
        """
        for name, _ in list(self.named_children()):
            setattr(self, name, _copy(getattr(owner, name)))
        self.train()

    def _pairs(self, owner):
        own, goal = [], []
        for name, child in self.named_children():
            own += list(child.parameters())
            goal += list(getattr(owner, name).parameters())
        return own, goal


def _copy(student):
    own = copy.deepcopy(student).requires_grad_(False)
    for module in own.modules():
        if hasattr(module, "drop_path"):
            module.drop_path = 0.0
    return own
