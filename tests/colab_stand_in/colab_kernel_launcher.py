"""Starts an IPython kernel as Colab does: google.colab is loaded before the first cell runs."""

import sys

import google.colab  # noqa: F401
from ipykernel import kernelapp

if __name__ == "__main__":
    sys.path.pop(0)  # the folder that `python -m` puts there; Colab's kernel starts with /content instead
    kernelapp.launch_new_instance()
