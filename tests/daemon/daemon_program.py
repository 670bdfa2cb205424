"""The real daemon with the workers of these tests: ``daemon_program.py [options of offrld]``."""

import sys
from pathlib import Path

from offrld.daemon.main import main
from offrld.executors.local import LocalExecutor

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    describe = [sys.executable, "-S", str(HERE / "describe_program.py")]
    if "--broken-describe" in sys.argv:
        sys.argv.remove("--broken-describe")
        describe.append("--broken")
    executor = LocalExecutor([sys.executable, "-S", str(HERE / "worker_program.py")], describe)
    sys.exit(main(sys.argv[1:], executor=executor))
