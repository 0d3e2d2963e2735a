"""Stop a distillation between two of its steps."""

import itertools
from contextlib import contextmanager

import pytest

from nnunet_kd.workflow.distillation import Distillation


@contextmanager
def stopped_after(count):
    """Stop a distillation after some of its steps, as Ctrl-C does."""
    steps = Distillation.steps

    def first_steps(self):
        yield from itertools.islice(steps(self), count)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "steps", first_steps)
        yield
