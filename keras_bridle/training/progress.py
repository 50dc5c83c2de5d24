"""Progress, speed and traces."""

import hashlib
import os
import platform
import resource
import socket
import sys
import time
from pathlib import Path

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.record_writer import RecordWriter

# The most lines to print without a terminal.
_LINES = 5


def device_memory():
    """Returns the peak of the first device, or the process' memory, in bytes."""
    used = None
    if keras.backend.backend() == "jax":
        import jax

        used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.config.get_visible_devices("GPU"):
            used = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    else:
        import torch

        if torch.cuda.is_available():
            used = torch.cuda.max_memory_allocated()
    if used is not None:
        return used, "device"
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize(), "process"
    # Peak memory, in bytes on macOS and in KiB elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), "process"


def start_trace(folder):
    """Starts a trace on any backend; returns a function that stops it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if keras.backend.backend() == "jax":
        import jax

        jax.profiler.start_trace(folder)
        return jax.profiler.stop_trace
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.profiler.experimental.start(str(folder))
        return tf.profiler.experimental.stop
    import torch

    write = torch.profiler.tensorboard_trace_handler(str(folder))
    profile = torch.profiler.profile(on_trace_ready=write)
    profile.start()
    return profile.stop


def tune_jax():
    """Caches what JAX compiles; call it before any computation."""
    if keras.backend.backend() != "jax":
        return
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        # Code for one processor may not run on another one that shares this folder.
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        # Linux' names for the processor's features on x86 and on ARM.
        features = [x for x in lines if x.lower().startswith(("flags", "features"))]
        about = "".join([platform.machine(), platform.processor(), *features[:1]])
        machine = hashlib.sha256(about.encode()).hexdigest()[:8]
        folder = Path(cache, "keras_bridle", f"jax-{machine}")
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Cache small programs, too: together they take as long as the large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class RichProgress(keras.callbacks.Callback):
    """Shows one line for a phase: epochs, time left, speed, and its main metrics.

    Without a terminal it prints a line now and then instead of a bar; with a quiet
    `console`, it only measures. The first step, which compiles, does not count.
    """

    def __init__(self, title, epochs, steps, reading_speed=None, console=None):
        super().__init__()
        self.title = title
        self.epochs = epochs
        self.steps = steps
        self.batch_size = self.clock = None
        self.reading_speed = reading_speed
        self.console = console or Console()
        self.first_step = 0
        self.bar = None

    def watched(self, batches):
        """Reads the clock of batches, and returns them."""
        self.batch_size = getattr(batches, "batch_size", None)
        self.clock = getattr(batches, "clock", None)
        return batches

    def on_train_begin(self, logs=None):
        self.close()
        self._metrics = ""
        self._timed = -1
        self._start = self._end = self._waited = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self.done = epoch * self.steps + self.first_step * (self._timed < 0)
        if self.console.is_terminal and not self.console.quiet and self.bar is None:
            self.bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.fields[text]}"),
                console=self.console,
            )
            total = self.epochs * self.steps
            self.bar.add_task(self.title, total=total, completed=self.done, text="")
            self.bar.start()

    def on_train_batch_end(self, batch, logs=None):
        if self.clock is not None and "loss" in (logs or {}):
            # Otherwise pending computation would count as waiting for the next batch.
            float(keras.ops.convert_to_numpy(logs["loss"]))
        self.done += 1
        self._timed += 1
        self._end = time.perf_counter()
        if self._timed == 0:
            self._start = self._end
            self._waited = self.clock.seconds if self.clock is not None else 0.0
        self._update()

    def on_epoch_end(self, epoch, logs=None):
        self._metrics = _format_logs(logs or {})
        interval = -(-self.epochs // _LINES)
        is_due = (epoch + 1) % interval == 0 or epoch + 1 == self.epochs
        if self.bar is None and is_due and not self.console.quiet:
            self.console.print(f"{self.title:<16} {self._line()}", highlight=False)

    def on_train_end(self, logs=None):
        self._update()
        self.close()

    def close(self):
        """Releases the terminal; only needed if `fit()` ended with an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def numbers(self):
        """Returns all measurements of speed, floats by name."""
        found = {"memory_gb": device_memory()[0] / 1e9}
        seconds = self._end - self._start
        if self._timed < 1 or seconds <= 0:
            return found
        found["step_seconds"] = seconds / self._timed
        size = self.batch_size
        if self.clock is not None:
            waited = self.clock.seconds - self._waited
            found["waiting_for_input"] = min(1.0, waited / seconds)
            if self.clock.batches:
                size = self.clock.examples / self.clock.batches
        if size is not None:
            found["examples_per_second"] = size / found["step_seconds"]
        steps_left = self.epochs * self.steps - self.done
        found["seconds_left"] = steps_left * found["step_seconds"]
        return found

    def _update(self):
        if self.bar is not None:
            self.bar.update(0, completed=self.done, text=self._line())

    def _line(self):
        found, parts = self.numbers(), []
        if "step_seconds" in found:
            seconds = found["step_seconds"]
            rate, unit = found.get("examples_per_second"), "examples/s"
            if rate is None:
                rate, unit = 1 / seconds, "steps/s"
            parts += [f"{_format_number(rate)} {unit}", f"{_format_time(seconds)}/step"]
        if "waiting_for_input" in found:
            alone = ""
            if self.reading_speed is not None:
                alone = f" (alone {_format_number(self.reading_speed)}/s)"
            parts.append(f"{found['waiting_for_input']:.0%} waiting for input{alone}")
        on_device = " on the device" * (device_memory()[1] == "device")
        parts.append(f"{found['memory_gb']:.1f} GB{on_device}")
        if found.get("seconds_left"):
            parts.append(f"{_format_time(found['seconds_left'])} left")
        numbers = ", ".join(parts)
        return f"epoch {self._epoch + 1}/{self.epochs}  {numbers}  {self._metrics}"


def _format_number(number):
    return f"{number:.{0 if number >= 10 else 1}f}"


def _format_time(seconds):
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{_format_number(seconds / size)} {unit}"
    return f"{_format_number(1000 * seconds)} ms"


def _format_logs(logs):
    """Formats the loss and the most important metrics to fit a line."""
    names = ["loss", "cosine", "accuracy", "val_accuracy", "val_mAP"]
    line = [f"{name} {float(logs[name]):.3f}" for name in names if name in logs]
    for group, title in (("accuracy", "accuracy"), ("usage", "used")):
        levels = [name for name in logs if name.startswith(f"{group}_")]
        levels.sort(key=lambda name: int(name.rpartition("_")[2]))
        if levels:
            values = "/".join(f"{100 * float(logs[name]):.0f}" for name in levels)
            line.append(f"{title} {values} %")
    if "rank" in logs:
        line.append(f"tokens {logs['token_deviation']:.2f}  rank {logs['rank']:.0f}")
    if "knn" in logs:
        line.append(f"k-NN {logs['knn']:.0%}")
    return "  ".join(line)


class EventWriter:
    """Writes files for TensorBoard, without TensorFlow."""

    def __init__(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._writer = RecordWriter(Path(folder, name).open("wb"))  # noqa: SIM115
        self._write(file_version="brain.Event:2")

    def write(self, step, values):
        """Writes a dict of numbers."""
        numbers = [Summary.Value(tag=x, simple_value=values[x]) for x in values]
        self._write(step=step, summary=Summary(value=numbers))

    def write_text(self, tag, text):
        """Writes a text."""
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        value = Summary.Value(
            tag=tag,
            metadata=SummaryMetadata(plugin_data=plugin),
            tensor=TensorProto(dtype="DT_STRING", string_val=[text.encode()]),
        )
        self._write(summary=Summary(value=[value]))

    def finish(self):
        """Closes the file."""
        self._writer.close()

    def _write(self, **content):
        event = Event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()


class SpeedBoard(keras.callbacks.Callback):
    """Logs to TensorBoard as Keras does, with the numbers of a `RichProgress`."""

    def __init__(self, folder, progress):
        super().__init__()
        self.folder = folder
        self.progress = progress

    def on_train_begin(self, logs=None):
        self._writer = EventWriter(Path(self.folder, "train"))

    def on_epoch_end(self, epoch, logs=None):
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        speed = {f"speed/{key}": x for key, x in self.progress.numbers().items()}
        found = {**(logs or {}), "learning_rate": rate, **speed}
        self._writer.write(epoch, {f"epoch_{x}": float(found[x]) for x in found})

    def on_train_end(self, logs=None):
        self._writer.finish()


class ProfileSteps(keras.callbacks.Callback):
    """Records a trace of some steps of a `fit()`, after compiling."""

    first_step, steps = 3, 5

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self._done, self._stop = 0, None

    def on_train_batch_begin(self, batch, logs=None):
        if self._done == self.first_step:
            self._stop = start_trace(self.folder)

    def on_train_batch_end(self, batch, logs=None):
        self._done += 1
        if self._done == self.first_step + self.steps:
            # Pending computation belongs to the trace.
            keras.tree.map_structure(keras.ops.convert_to_numpy, logs or {})
            self.close()

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Stops the recording, if there is one."""
        if self._stop is not None:
            stop, self._stop = self._stop, None
            stop()
