"""PPO with an IMPALA encoder and a GRU on Procgen, and an honest measure of how it generalises.

Nothing is imported or configured here: import the modules by name, in the reading order that the
README gives (`ppo_lib.config` first).
"""

__version__ = "0.1.0"
