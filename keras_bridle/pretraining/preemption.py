"""What happens when a scheduler takes the machine away."""

import os
import signal
import threading

# As a shell reports a program that SIGTERM ended: Kubernetes, HTCondor and the like
# take it for a stop that was asked for, not for a fault of the program.
EXIT_CODE = 128 + signal.SIGTERM


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

    Attributes:
        is_requested: bool, whether the signal came.

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

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, error, traceback):
        self._restore()
        if self.is_requested and kind is None:
            # It came too late for this run, but the program is to end all the same.
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_if_requested(self):
        """Raises `Preempted` if the signal came. Call it when all is saved."""
        if self.is_requested:
            raise Preempted

    def _note(self, number, frame):
        self.is_requested = True
        self._restore()

    def _restore(self):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
