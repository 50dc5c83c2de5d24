"""Progress, speed and traces."""

import ctypes
import os
import resource
import sys
import time
from pathlib import Path

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.quantizer.usage import named_usage


def device_memory():
    """Tells how much memory is in use.

    Returns:
        A tuple of the bytes, and `"device"` or `"process"`: the peak of the first
        accelerator where the engine tells, else what the process holds now.
    """
    used = _PEAKS[keras.backend.backend()]()
    return (_process_memory(), "process") if used is None else (used, "device")


def start_trace(folder):
    """Starts to record what the engine does.

    Args:
        folder: path; TensorBoard's profile plugin, Perfetto or `chrome://tracing` show
            what will be there.

    Returns:
        A function that ends the recording and writes it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    return _TRACES[keras.backend.backend()](str(folder))


def keep_freed_memory():
    """Lets this process keep the memory that it frees, for the next step.

    JAX on a CPU allocates what a step needs anew each time. glibc gives so large blocks
    back to the system at once, and to get them again, page by page, took a third of the
    time of a step on the sample syllables. Other backends keep their buffers.

    Call it before anything is computed: threads that have memory of their own by then
    keep to it.

    Returns:
        bool, whether there was something to do, and it was done.

    Example:
    ```python
    from keras_bridle.training.progress import keep_freed_memory

    keep_freed_memory()
    ```
    """
    if keras.backend.backend() != "jax" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    no_mapped_blocks, never_trim = (-4, 0), (-1, 2**31 - 1)
    # One for all threads makes them wait for each other, many keep too much.
    arenas = (-8, os.cpu_count() or 1)
    settings = (no_mapped_blocks, arenas, never_trim)
    return all(mallopt(*setting) for setting in settings)


def _jax_peak():
    import jax

    statistics = jax.local_devices()[0].memory_stats()
    return statistics and statistics.get("peak_bytes_in_use")


def _tensorflow_peak():
    import tensorflow as tf

    if not tf.config.get_visible_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def _torch_peak():
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated()


def _jax_trace(folder):
    import jax

    jax.profiler.start_trace(folder)
    return jax.profiler.stop_trace


def _tensorflow_trace(folder):
    import tensorflow as tf

    tf.profiler.experimental.start(folder)
    return tf.profiler.experimental.stop


def _torch_trace(folder):
    import torch

    profile = torch.profiler.profile()
    profile.start()

    def stop():
        profile.stop()
        profile.export_chrome_trace(f"{folder}/trace.json")

    return stop


def _process_memory():
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    # The most it ever held, in bytes on macOS and in KiB elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


_PEAKS = {"jax": _jax_peak, "tensorflow": _tensorflow_peak, "torch": _torch_peak}
_TRACES = {"jax": _jax_trace, "tensorflow": _tensorflow_trace, "torch": _torch_trace}


class Throughput(keras.callbacks.Callback):
    """Measures the speed of a `fit()` without its first step, which compiles.

    Args:
        batch_size: optional int, to count examples.
        clock: optional `InputClock` of the data set that is trained on, to count its
            examples and the time spent on waiting for it.

    Attributes:
        steps_done: int, steps since the `fit()` began.
        epochs: int, the epochs to train.
        epoch: int, the one that is being trained, counted from 0.
        steps: int or `None`, the steps of an epoch.
        step: int, the steps of the epoch that are done.
    """

    def __init__(self, batch_size=None, clock=None):
        super().__init__()
        self.batch_size = batch_size
        self.clock = clock
        self._rest: tuple | None = None
        self._first_step = 0
        self.steps_done = self.epoch = self.step = 0

    def in_rest_of_epoch(self, first_step, steps, epochs):
        """Tells what the next `fit()`, of the rest of an epoch, is a part of.

        Args:
            first_step: int, the steps of the epoch that were done before.
            steps: int, the steps of a whole epoch.
            epochs: int, the epochs to train.
        """
        self._rest = (first_step, steps, epochs)

    def on_train_begin(self, logs=None):
        here = (0, self.params.get("steps"), self.params.get("epochs"))
        self._first_step, self.steps, self.epochs = self._rest or here
        self._rest = None
        self.steps_done = self.epoch = self.step = 0
        self._begin()

    def on_epoch_begin(self, epoch, logs=None):
        if self.steps_done:
            self._first_step = 0
        self.epoch, self.step = epoch, self._first_step

    def on_train_batch_end(self, batch, logs=None):
        if self.clock is not None and "loss" in (logs or {}):
            # What is still being computed would pass for waiting at the next batch.
            float(keras.ops.convert_to_numpy(logs["loss"]))
        self.steps_done += 1
        self.step = self._first_step + batch + 1
        if self.steps_done == 1:
            self._begin()
        else:
            self._end = time.perf_counter()

    def _begin(self):
        self._first = self.steps_done
        self._start = self._end = time.perf_counter()
        if self.clock is not None:
            self._waited = self.clock.seconds

    @property
    def step_seconds(self):
        """Seconds from one step to the next, or `None` before two are done."""
        steps = self.steps_done - self._first
        return (self._end - self._start) / steps if steps else None

    @property
    def examples_per_batch(self):
        """The mean size of batches, or `None` if it is not known."""
        if self.clock is not None and self.clock.batches:
            return self.clock.examples / self.clock.batches
        return self.batch_size

    @property
    def waiting(self):
        """The share of the time in which training waits for input, or `None`."""
        seconds = self._end - self._start
        if self.clock is None or seconds <= 0:
            return None
        return min(1.0, (self.clock.seconds - self._waited) / seconds)

    @property
    def seconds_left(self):
        """The time to the end of the `fit()` at this speed, or `None`."""
        if not self.steps or self.step_seconds is None:
            return None
        left = (self.epochs - self.epoch) * self.steps - self.step
        return left * self.step_seconds

    def numbers(self):
        """All that is known, as a dict of floats."""
        seconds = self.step_seconds
        found = {
            "step_seconds": seconds,
            "waiting_for_input": self.waiting,
            "seconds_left": self.seconds_left,
            "memory_gb": device_memory()[0] / 1e9,
        }
        if seconds and self.examples_per_batch is not None:
            found["examples_per_second"] = self.examples_per_batch / seconds
        return {name: value for name, value in found.items() if value is not None}


class RichProgress(keras.callbacks.Callback):
    """Shows one line for a phase: epochs, time left, speed, and its main metrics.

    The speed is examples for each second, the time of a step, the share of it in which
    training waits for input, and the memory in use. Where the output is no terminal, it
    prints a line now and then instead of a bar.

    Args:
        title: string, what is running.
        batch_size: optional int, to show examples for each second instead of steps.
        console: optional `rich.console.Console`.
        lines: int, how many lines to print at most where there is no terminal.
        clock: optional `InputClock` of the data set that is trained on, to show
            examples for each second, and the share of the time in which training waits
            for input: near 0 %, reading keeps up.
        reading_speed: optional float, the examples for each second that the data set
            gives when nothing else runs, shown beside the clock's.

    Attributes:
        throughput: `Throughput`, what the line is made of.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.training.progress import RichProgress

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    model.fit(
        np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0,
        callbacks=[RichProgress("demo", batch_size=8)],
    )
    ```
    """

    def __init__(
        self,
        title,
        batch_size=None,
        console=None,
        lines=5,
        clock=None,
        reading_speed=None,
    ):
        super().__init__()
        self.title = title
        self.console = console or Console()
        self.lines = lines
        self.reading_speed = reading_speed
        self.throughput = Throughput(batch_size, clock)
        self._progress = None

    def set_params(self, params):
        super().set_params(params)
        self.throughput.set_params(params)

    def on_train_begin(self, logs=None):
        speed = self.throughput
        speed.on_train_begin()
        self._text = ""
        self.close()
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        total = speed.epochs * speed.steps if speed.steps else None
        self._task = self._progress.add_task(self.title, total=total, text="")
        self._progress.start()

    def on_epoch_begin(self, epoch, logs=None):
        speed = self.throughput
        speed.on_epoch_begin(epoch)
        if self._progress is not None and speed.steps_done == 0 and speed.steps:
            # A resumed phase starts here; what was done before took no time now.
            self._progress.reset(self._task, completed=self._completed())

    def on_train_batch_end(self, batch, logs=None):
        self.throughput.on_train_batch_end(batch, logs)
        if self._progress is not None:
            self._progress.update(
                self._task, completed=self._completed(), text=self._line()
            )

    def on_epoch_end(self, epoch, logs=None):
        self._text = _format_logs(logs or {})
        epochs = self.throughput.epochs
        interval = max(1, -(-epochs // self.lines))
        is_due = (epoch + 1) % interval == 0 or epoch + 1 == epochs
        if self._progress is None and is_due:
            left = self.throughput.seconds_left
            text = self._line(f", {_format_time(left)} left" if left else "")
            self.console.print(f"{self.title:<16} {text}", highlight=False)

    def on_train_end(self, logs=None):
        if self._progress is not None:
            self._progress.update(self._task, text=self._line())
        self.close()

    def close(self):
        """Gives the terminal back; needed only where `fit()` ended with an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _completed(self):
        speed = self.throughput
        return (
            speed.epoch * speed.steps + speed.step if speed.steps else speed.steps_done
        )

    def _line(self, left=""):
        speed = self.throughput
        parts = []
        if speed.step_seconds:
            rate, unit = 1 / speed.step_seconds, "steps/s"
            if speed.examples_per_batch is not None:
                rate, unit = rate * speed.examples_per_batch, "examples/s"
            parts.append(f"{_format_number(rate)} {unit}")
            parts.append(f"{_format_time(speed.step_seconds)}/step")
        parts += self._input_texts()
        memory, where = device_memory()
        on_device = " on the device" if where == "device" else ""
        parts.append(f"{memory / 1e9:.1f} GB{on_device}")
        line = f"epoch {speed.epoch + 1}/{speed.epochs}  {', '.join(parts)}{left}"
        return f"{line}  {self._text}"

    def _input_texts(self):
        """How reading keeps up, if it is timed."""
        if self.throughput.waiting is None:
            return []
        text = f"{self.throughput.waiting:.0%} waiting for input"
        if self.reading_speed is not None:
            text += f" (alone {_format_number(self.reading_speed)}/s)"
        return [text]


def _format_number(number):
    return f"{number:.{0 if number >= 10 else 1}f}"


def _format_time(seconds):
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{_format_number(seconds / size)} {unit}"
    return f"{_format_number(1000 * seconds)} ms"


def _format_logs(logs):
    """The loss first, then what tells most; no more than fits a line."""
    names = ["loss", "cosine", "accuracy", "val_accuracy", "val_mAP"]
    names = [name for name in names if name in logs]
    line = [f"{name} {float(logs[name]):.3f}" for name in names]
    for group, title in (("accuracy", "accuracy"), ("usage", "used")):
        levels = sorted(
            (name for name in logs if name.startswith(f"{group}_")),
            key=lambda name: int(name.rpartition("_")[2]),
        )
        if levels:
            values = "/".join(f"{100 * float(logs[name]):.0f}" for name in levels)
            line.append(f"{title} {values} %")
    return "  ".join(line)


class SpeedBoard(keras.callbacks.TensorBoard):
    """Keras' TensorBoard callback, with the numbers of a `Throughput` in each epoch.

    They are `epoch_speed/step_seconds`, `epoch_speed/examples_per_second`,
    `epoch_speed/waiting_for_input`, `epoch_speed/memory_gb` and
    `epoch_speed/seconds_left`; they are not in the history.

    Args:
        folder: string or path.
        throughput: `Throughput`, called before this callback.
    """

    def __init__(self, folder, throughput):
        super().__init__(str(folder), write_graph=False)
        self.throughput = throughput

    def on_epoch_end(self, epoch, logs=None):
        speed = {f"speed/{key}": x for key, x in self.throughput.numbers().items()}
        super().on_epoch_end(epoch, {**(logs or {}), **speed})


class ProfileSteps(keras.callbacks.Callback):
    """Records some steps of a `fit()`, after those in which engines compile.

    Args:
        folder: string or path, where the trace goes.
        first_step: int, the step to begin with, counted from 0 over all epochs.
        steps: int, how many steps to record; fewer if the training ends before.

    Example:
    ```python
    import tempfile
    import keras
    import numpy as np
    from keras_bridle.training.progress import ProfileSteps

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    trace = ProfileSteps(tempfile.mkdtemp(), first_step=1, steps=1)
    model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=2, callbacks=[trace])
    ```
    """

    def __init__(self, folder, first_step=3, steps=5):
        super().__init__()
        self.folder = folder
        self.first_step = first_step
        self.steps = steps
        self._done, self._stop = 0, None

    def on_train_batch_begin(self, batch, logs=None):
        if self._done == self.first_step:
            self._stop = start_trace(self.folder)

    def on_train_batch_end(self, batch, logs=None):
        self._done += 1
        if self._stop is not None and self._done == self.first_step + self.steps:
            # What is still being computed belongs to the trace.
            for value in (logs or {}).values():
                keras.ops.convert_to_numpy(value)
            self.close()

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Ends the recording, if one is on."""
        if self._stop is not None:
            stop, self._stop = self._stop, None
            stop()


class CodeUsageLogger(keras.callbacks.Callback):
    """Adds usage, perplexity and dead codes of every codebook to the epoch's logs.

    Works in the plain `fit()` of any model with `ResidualQuantizer` layers: they count
    the codes they choose in training, and this callback reads the counts at the end of
    each epoch. Layers that are frozen or not in training count nothing and are left
    out. The numbers are in the `History` and the progress bar; put this callback
    before those that read logs, such as `CSVLogger`.

    The names are `usage_1`, `perplexity_1`, `dead_codes_1`, `usage_2` and so on; in a
    model with several quantizers each starts with its layer's name and `_`.

    Raises:
        ValueError: on `fit()`, if the model has no `ResidualQuantizer`.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.training.progress import CodeUsageLogger

    inputs = keras.Input((8,))
    quantizer = ResidualQuantizer(num_levels=2, codebook_size=16)
    model = keras.Model(inputs, quantizer(keras.layers.Dense(4)(inputs)).quantized)
    model.compile(optimizer="adam", loss="mse")
    history = model.fit(
        np.random.normal(size=(64, 8)),
        np.random.normal(size=(64, 4)),
        callbacks=[CodeUsageLogger()],
        verbose=0,
    )
    print(history.history["perplexity_1"])
    ```
    """

    def on_train_begin(self, logs=None):
        """Checks that there is something to log."""
        if not self._quantizers():
            raise ValueError(
                "CodeUsageLogger needs a model with `ResidualQuantizer` layers. "
                f"Received: {self.model.name}, which has none"
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Starts to count anew."""
        for quantizer in self._quantizers():
            # A subclassed model may be built by its first batch only.
            if quantizer.built:
                quantizer.reset_usage()

    def on_epoch_end(self, epoch, logs=None):
        """Puts the numbers into `logs`."""
        if logs is None:
            return
        quantizers = self._quantizers()
        for quantizer in quantizers:
            if not quantizer.built:
                continue
            counts = keras.ops.convert_to_numpy(quantizer.code_histogram)
            if not counts.any():
                continue
            prefix = f"{quantizer.name}_" if len(quantizers) > 1 else ""
            for name, value in named_usage(counts, prefix).items():
                logs[name] = float(value)

    def _quantizers(self):
        layers = self.model._flatten_layers(include_self=True, recursive=True)
        # A shared layer comes once for each place it is used in.
        found = {
            id(layer): layer for layer in layers if isinstance(layer, ResidualQuantizer)
        }
        return list(found.values())
