"""Runs a program on several CPU devices: `python on_virtual_devices.py PROGRAM ...`.

How many is in `KERAS_BRIDLE_DEVICES`.
"""

import runpy
import sys

from training_steps import use_virtual_devices

if __name__ == "__main__":
    use_virtual_devices()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
