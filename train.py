"""Train the learned scheduling policy.

python train.py --config quick            a few minutes on two cores
python train.py --config default -n 5e7   any field of agents.training.config.TrainConfig is a flag: --ppo.learning_rate 1e-4
python train.py -i runs/ppo-1             go on where an interrupted run stopped
"""

from __future__ import annotations

import sys

from agents.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
