"""A progress bar for long phases."""

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from keras_bridle.pretraining.device import device_memory
from keras_bridle.pretraining.throughput import Throughput


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
    from keras_bridle.pretraining import RichProgress

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
