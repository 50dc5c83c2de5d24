"""What happens when a scheduler takes the machine away."""

import os
import signal
import threading
import time

import numpy as np

from keras_bridle.distribution import is_alone, is_chief, total

# As a shell reports a program that SIGTERM ended: Kubernetes, HTCondor and the like
# take it for a stop that was asked for, not for a fault of the program.
EXIT_CODE = 128 + signal.SIGTERM
# How often several processes ask each other, in seconds.
_INTERVAL = 1.0


class Preempted(SystemExit):
    """Ends a program that was asked to end, after its state was saved.

    The exit code is 143, that is 128 + SIGTERM.

    Example:
    ```python
    from keras_bridle.pretraining import Preempted

    try:
        raise Preempted
    except SystemExit as stop:
        print(stop.code)  # 143
    ```
    """

    def __init__(self):
        super().__init__(EXIT_CODE)


class Preemption:
    """Notes that the process got SIGTERM, for training to stop at the next step.

    In a `with` block the first signal is noted and the second one is acted upon at
    once. Only the main thread of a program can do so; elsewhere nothing is noted.

    Several processes stop together, whichever of them got the signal: they ask each
    other about once a second, after the same step. As what starts them may pass signals
    on that they have got already, more than one is not acted upon there.

    Attributes:
        is_requested: bool, whether the signal came, to this process.

    Example:
    ```python
    import os
    import signal
    from keras_bridle.pretraining.preemption import Preempted, Preemption

    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            preemption.stop_if_requested()
    except Preempted as stop:
        print(stop.code)  # 143
    ```
    """

    def __init__(self):
        self.is_requested = False
        self._before = None
        self._is_alone = is_alone()
        # Of several processes: what they have found, and steps to the next asking.
        self._is_agreed, self._steps, self._steps_left = False, 1, 1
        self._asked_at = time.monotonic()

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, error, traceback):
        if kind is not None and issubclass(kind, Preempted) and not self._is_alone:
            # The first one to end makes torchrun send the others the signal.
            return
        self._restore()
        if self.is_requested and kind is None:
            # It came too late for this run, but the program is to end all the same.
            os.kill(os.getpid(), signal.SIGTERM)

    def is_due(self):
        """Tells whether to save and to stop; to be called after each step.

        Returns:
            bool, the same in all processes.
        """
        if self._is_alone:
            return self.is_requested
        self._steps_left -= 1
        if self._steps_left <= 0:
            self._ask()
        return self._is_agreed

    def stop_if_requested(self):
        """Raises `Preempted` if the signal came. Call it when all is saved.

        Of several processes, none goes on or ends before all have come here.
        """
        if not self._is_alone:
            self._ask()
            # What follows may have longer steps.
            self._steps = self._steps_left = 1
        if self.is_requested if self._is_alone else self._is_agreed:
            raise Preempted

    def _ask(self):
        """Learns whether any process got the signal, and when the chief asks again."""
        now = time.monotonic()
        steps = self._steps * _INTERVAL / max(now - self._asked_at, 1e-3)
        # One step that happens to be short tells little.
        steps = int(np.clip(steps, 1, 2 * self._steps)) if is_chief() else 0
        requests, steps = total(np.array([self.is_requested, steps], "int32"))
        self._is_agreed = self._is_agreed or bool(requests)
        self._steps = self._steps_left = int(steps)
        self._asked_at = now

    def _note(self, number, frame):
        self.is_requested = True
        if self._is_alone:
            self._restore()

    def _restore(self):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
