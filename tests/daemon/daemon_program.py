"""The real daemon with the workers of these tests: ``daemon_program.py [options of offrld]``."""

import resource
import sys
import time
from pathlib import Path

from offrld.daemon.main import main
from offrld.daemon.workers import supervisor
from offrld.executors.local import LocalExecutor

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    describe = [sys.executable, "-S", str(HERE / "describe_program.py")]
    if "--broken-describe" in sys.argv:
        sys.argv.remove("--broken-describe")
        describe.append("--broken")
    if "--clock" in sys.argv:  # a file with the seconds by which somebody has set the machine's clock
        at = sys.argv.index("--clock")
        offset, real = Path(sys.argv[at + 1]), time.time
        del sys.argv[at : at + 2]
        time.time = lambda: real() + float(offset.read_text())
    if "--files" in sys.argv:  # that it may open
        at = sys.argv.index("--files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[at + 1]),) * 2)
        del sys.argv[at : at + 2]
    if "--housekeeping" in sys.argv:  # seconds between two looks
        at = sys.argv.index("--housekeeping")
        supervisor.HOUSEKEEPING_S = float(sys.argv[at + 1])
        del sys.argv[at : at + 2]
    executor = LocalExecutor([sys.executable, "-S", str(HERE / "worker_program.py")], describe)
    sys.exit(main(sys.argv[1:], executor=executor))
