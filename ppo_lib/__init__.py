"""PPO with an IMPALA encoder and a GRU on Procgen, and an honest measure of how it generalises.

Nothing is imported here: import the modules by name, in the reading order that the README gives
(`ppo_lib.config` first).
"""

import os

__version__ = "0.1.0"

# How long an OpenMP thread without work spins before it sleeps. By default it spins for milliseconds, on a core that
# other work needs; without any spinning, training alone is slower (benchmarks/busy.py). Torch reads it when loaded.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:  # unless the user has chosen
    os.environ["GOMP_SPINCOUNT"] = "10000"
