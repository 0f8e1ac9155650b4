import gc
import os

collect_ignore = ["programs"]  # each is run by test_programs.py, in a process of its own

# The networks of the tests are so small that a second thread costs more than it gives.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the processes that tests start


def pytest_collection_finish() -> None:
    """Leave what is imported out of every later collection of garbage, which a growth makes."""
    gc.freeze()
