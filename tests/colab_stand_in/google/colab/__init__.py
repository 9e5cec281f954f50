"""A stand-in for google.colab that behaves like the real one where this project uses it.

- Colab's kernel is started by colab_kernel_launcher, which loads google.colab before the first cell; so is this one.
- The real `drive.mount` asks the user for permission; here STAND_IN_DRIVE=refuse in the environment refuses it.
"""
