"""What must not be run when a checkpoint is loaded."""

RAN: list[str] = []


def run(word):
    RAN.append(word)


class Payload:
    """Runs something where it is unpickled."""

    def __reduce__(self):
        return run, ("was run",)
