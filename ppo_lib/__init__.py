"""PPO with an IMPALA encoder and a GRU on Procgen, and an honest measure of how it generalises.

Nothing is imported here: import the modules by name, in the reading order that the README gives
(`ppo_lib.config` first).
"""

import os

__version__ = "0.1.0"

# How often an OpenMP thread without work looks for some before it sleeps. With torch's default of 300,000 it keeps a
# core from other work for 10 ms, and with none at all, training alone is slower: see benchmarks/busy.py.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:  # unless the user has chosen
    os.environ["GOMP_SPINCOUNT"] = "50000"  # torch reads it when it is loaded
