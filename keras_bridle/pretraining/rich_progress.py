"""A progress bar for long phases."""

import time

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class RichProgress(keras.callbacks.Callback):
    """Shows one line for a phase: epochs, time left, speed, and its main metrics.

    Where the output is no terminal, it prints a line now and then instead of a bar.

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
        self.batch_size = batch_size
        self.console = console or Console()
        self.lines = lines
        self.clock = clock
        self.reading_speed = reading_speed
        self._progress = None

    def on_train_begin(self, logs=None):
        epochs, steps = self.params["epochs"], self.params["steps"]
        self._epoch, self._steps_done, self._text = 0, 0, ""
        self._start = time.perf_counter()
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
        total = epochs * steps if steps else None
        self._task = self._progress.add_task(self.title, total=total, text="")
        self._progress.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        steps = self.params["steps"]
        if self._progress is not None and self._steps_done == 0 and steps:
            # A resumed phase starts here; what was done before took no time now.
            self._progress.reset(self._task, completed=epoch * steps)

    def on_train_batch_end(self, batch, logs=None):
        self._steps_done += 1
        if self.clock is not None and "loss" in (logs or {}):
            # What is still being computed would pass for waiting at the next batch.
            float(keras.ops.convert_to_numpy(logs["loss"]))
        if self._progress is not None:
            steps = self.params["steps"]
            done = self._epoch * steps + batch + 1 if steps else self._steps_done
            self._progress.update(self._task, completed=done, text=self._line())

    def on_epoch_end(self, epoch, logs=None):
        self._text = _format_logs(logs or {})
        epochs = self.params["epochs"]
        interval = max(1, -(-epochs // self.lines))
        is_due = (epoch + 1) % interval == 0 or epoch + 1 == epochs
        if self._progress is None and is_due:
            self.console.print(f"{self.title:<16} {self._line()}", highlight=False)

    def on_train_end(self, logs=None):
        if self._progress is not None:
            self._progress.update(self._task, text=self._line())
        self.close()

    def close(self):
        """Gives the terminal back; needed only where `fit()` ended with an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self):
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rate, unit, batch_size = self._steps_done / seconds, "steps/s", self.batch_size
        if self.clock is not None and self.clock.batches:
            batch_size = self.clock.examples / self.clock.batches
        if batch_size is not None:
            rate, unit = rate * batch_size, "examples/s"
        epoch = f"epoch {self._epoch + 1}/{self.params['epochs']}"
        input_text = self._input_text(seconds)
        return f"{epoch}  {_format_rate(rate)} {unit}{input_text}  {self._text}"

    def _input_text(self, seconds):
        """How reading keeps up, if it is timed."""
        if self.clock is None:
            return ""
        text = f", {min(1.0, self.clock.seconds / seconds):.0%} waiting for input"
        if self.reading_speed is not None:
            text += f" (alone {_format_rate(self.reading_speed)}/s)"
        return text


def _format_rate(rate):
    return f"{rate:.{0 if rate >= 10 else 1}f}"


def _format_logs(logs):
    """The loss first, then what tells most; no more than fits a line."""
    names = [name for name in ("loss", "cosine") if name in logs]
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
