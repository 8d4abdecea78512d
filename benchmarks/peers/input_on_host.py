"""What contestants of the input benchmark have in common: they work on the host, and read batches one by one."""

from collections.abc import Iterator

from input_files import BATCHES_A_CALL, list_images


class OnHost:
    """Reads batches of images.

    Args:
        folder: of the images, all of which are read.
        threads: that read.
        seed: of whatever is random.
        device: always "cpu".
    """

    device_name = None

    def __init__(self, *, folder: str, threads: int, seed: int, device: str) -> None:
        self.folder, self.threads, self.seed = folder, threads, seed
        self.paths = list_images(folder)

    def run(self, batches: Iterator):
        """Returns a call that draws some batches and returns the last.

        The batches are endless and are read ahead: what lies ready when a turn begins, its untimed first call takes.
        """

        def run():
            for _ in range(BATCHES_A_CALL):
                batch = next(batches)
            return batch

        return run

    def synchronize(self, result) -> None:
        """Returns at once: a batch that is there is ready."""

    def temporaries(self, run) -> None:
        """Returns None: not measured."""
