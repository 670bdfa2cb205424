"""Environments of installed packages: the entry-point group offrl.environments makes their ids known, whatever else is wrong."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gymnasium, offrl.environments
from offrl.rollout import make_env
problems = offrl.environments.register()
print(*problems, sep="\\n")
assert offrl.environments.register() == []
for name in ("Module-v0", "Function-v0", "offrld/breakout-v0"):
    assert name in gymnasium.registry, name
make_env("Module-v0").close()
"""


def test_a_module_or_a_function_registers_them_and_a_broken_one_is_told(tmp_path):
    (tmp_path / "worlds_a.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import PendulumEnv\ngymnasium.register('Module-v0', PendulumEnv)\n"
    )
    (tmp_path / "worlds_b.py").write_text(
        "import gymnasium\n\ndef register():\n    gymnasium.register('Function-v0', 'worlds_a:PendulumEnv')\n"
    )
    (tmp_path / "worlds_c.py").write_text("raise RuntimeError('no\\nlicence')\n")
    about = tmp_path / "worlds-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: worlds\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[offrl.environments]\na = worlds_a\nb = worlds_b:register\nc = worlds_c\n")
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["environments c: worlds_c cannot be loaded: RuntimeError: no licence"]
