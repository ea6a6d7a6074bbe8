"""`experiments.train` with four short stages of few scenes, saved at every step: seconds instead of hours."""

import sys

from experiments import train
from experiments.training import stages
from experiments.training.stages import Stage

STAGES = (
    Stage("tower-one", "tower", 3, 2, 12, 1e-3),
    Stage("tower-two", "tower", 3, 2, 20, 1e-3, places=0.5),
    Stage("decoder-one", "decoder", 3, 2, 12, 1e-3, (1.0, 0.5)),
    Stage("decoder-two", "decoder", 3, 2, 20, 1e-3, places=0.05),
)

if __name__ == "__main__":
    train.STAGES, stages.SAVE_EVERY = STAGES, 1
    sys.exit(train.main())
