"""Of two processes that train together, one is killed or stopped: the other ends, and what was saved stays."""

import re
import time
from pathlib import Path

import pytest

from dcal_hf.training import last_checkpoint

from processes import CONTEXT, group_environments, run_in_child


WORKER = Path(__file__).parent / "signalled_worker.py"
TIMEOUT = 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"), [("SIGKILL", "Connection (closed|reset) by peer"), ("SIGSTOP", f"out waiting {TIMEOUT}000ms")]
)
def test_a_process_does_not_outlive_the_other_for_long(tmp_path, name, reason, tell):
    command, logs = [str(WORKER), str(tmp_path / "out"), name, str(TIMEOUT)], [tmp_path / "first", tmp_path / "second"]
    first, second = (
        CONTEXT.Process(target=run_in_child, args=(command, environment, log))
        for environment, log in zip(group_environments(2), logs, strict=True)
    )
    for worker in (first, second):
        worker.start()
    sent = tmp_path / "out" / "sent"
    while not sent.exists() and first.is_alive():
        time.sleep(0.05)
    started = time.monotonic()
    first.join(10 * TIMEOUT)
    seconds, exitcode = time.monotonic() - started, first.exitcode
    for worker in (first, second):
        worker.kill()
        worker.join()
    assert exitcode not in (None, 0), f"it ended with {exitcode} after {seconds:.0f} s"
    assert re.search(reason, logs[0].with_suffix(".err").read_text())
    assert last_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-2")
    outcome = f"the other ends {seconds:.0f} s later"
    tell(f"two processes, one gets {name} after step 3", f"--ddp_timeout {TIMEOUT}", outcome)
