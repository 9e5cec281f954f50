"""A stand-in for google.colab that does what the real one does where this project uses it.

- The real kernel is started by colab_kernel_launcher, which loads google.colab before the first cell.
- `drive.mount` asks a person for permission; here the environment variable STAND_IN_DRIVE=refuse plays one who says no.
"""
