"""What each of two processes runs in `test_two_processes.py`: the second signals itself after the third step."""

import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from distributed_worker import make_trainer


class SignalItself(TrainerCallback):
    def __init__(self, number: int):
        self.number = number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == 1:
            Path(args.output_dir, "sent").touch()
            os.kill(os.getpid(), self.number)


def main(output_dir: str, name: str, ddp_timeout: str) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    trainer = make_trainer(output_dir, ddp_timeout=int(ddp_timeout), **options)
    trainer.add_callback(SignalItself(signal.Signals[name]))
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
