"""Runs a program on several CPU devices: `python on_virtual_devices.py PROGRAM ...`.

How many is in `KERAS_BRIDLE_DEVICES`; JAX takes them from XLA_FLAGS.
"""

import os
import runpy
import sys

import keras

if __name__ == "__main__":
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        devices = int(os.environ["KERAS_BRIDLE_DEVICES"])
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * devices
        )
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
